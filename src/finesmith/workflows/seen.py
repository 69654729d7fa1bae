"""What a look at a recipe's data and model showed, before anything was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finesmith.guards.preflight import Probed


@dataclass(frozen=True, slots=True)
class Seen:
    """summary: as in data.json; probes: in the order in which they ran; plan and forecast: as `check` tells them.

    examples: a few training rows as the model is fed them, as in examples.json.
    """

    summary: Mapping[str, Any]
    probes: Sequence[Probed]
    plan: Mapping[str, Any]
    forecast: Mapping[str, Any]
    examples: Mapping[str, Any]
