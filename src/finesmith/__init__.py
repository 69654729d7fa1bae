"""finesmith: fine-tune a language model and get the evidence that it is better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["TunedRun", "__version__", "load", "merge", "resume", "tune"]

if TYPE_CHECKING:
    from finesmith.api import TunedRun, load, merge, resume, tune


def __getattr__(name: str) -> Any:
    """Import the API when it is first used, so that `import finesmith` costs nothing."""
    if name in __all__:
        from finesmith import api

        return getattr(api, name)
    raise AttributeError(f"module 'finesmith' has no attribute {name!r}")
