"""Save the tuned model so that plain libraries load it, and prove that the saved one is the evaluated one."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from finesmith.discreet import discreet
from finesmith.errors import FinesmithError
from finesmith.recipe import ADAPTERS
from finesmith.run import Run, read_json, whole_folder
from finesmith.workflows.finish import MODEL_FORMAT, PROOF_EXAMPLES, name_base

if TYPE_CHECKING:
    from finesmith.recipe import Recipe
    from finesmith.tasks.corpus import Encoded
    from finesmith.workflows.language.compare import Opened
    from finesmith.workflows.language.gather import Gathered
    from finesmith.workflows.language.setup import Setup


def finish(recipe: Recipe, run: Run, data: Gathered, setup: Setup, opened: Opened) -> None:
    """Save the model with its card, reload it and compare what it answers on held-out rows.

    Raises FinesmithError when the reloaded model answers differently: then it must not be shipped.
    """
    import numpy as np

    from finesmith.models.adapter_files import save_adapter
    from finesmith.recipe import with_absolute_paths
    from finesmith.report import card
    from finesmith.workflows.language.apply import load_model
    from finesmith.workflows.language.gather import reading_of
    from finesmith.workflows.seal import seal

    count = min(PROOF_EXAMPLES, len(opened.corpus))
    rows = _proof(data, setup, opened, count)
    evaluated = data.task.answer(setup.network, rows)
    with whole_folder(run.folder / "model") as folder:
        if recipe.method.name in ADAPTERS:
            save_adapter(setup.network, folder)
            name_base(folder, setup.base)
        else:
            data.task.save(setup.network, folder, setup.max_length)
        run.write_json(
            f"{folder.name}/finesmith.json",
            {
                "format": MODEL_FORMAT,
                "task": data.task.state,
                "method": recipe.method.name,
                "base": discreet(with_absolute_paths(recipe).model.base),
                "revision": recipe.model.revision,
                "base_sha256": setup.base.sha256,
                "max_length": setup.max_length,
                "reading": asdict(reading_of(recipe)),
                "metric": setup.metric,
            },
        )
        data.task.complete(setup.network, folder)
        again = data.task.answer(load_model(folder, device=setup.device.device).network, rows)
        expected = data.task.proof(evaluated)
        gap = float(np.abs(data.task.proof(again) - expected).max())
        tolerance = 1e-4 * max(1.0, float(np.abs(expected).max()))
        run.write_json("model.json", {**read_json(run.folder / "model.json"), "reload_gap": gap})
        if told := data.task.differs(evaluated, again):
            raise FinesmithError(
                f"the saved model is not the evaluated one: {told}; it was not kept; please report this"
            )
        if gap > tolerance:
            raise FinesmithError(
                f"the saved model differs from the evaluated one by {gap:.3g} on {count} test examples; "
                f"it was not kept; please report this with {run.folder / 'model.json'}"
            )
        run.record("saved", reload_gap=gap, examples=count)
        run.write_text(f"{folder.name}/README.md", card.build(run.folder))
        seal(folder)


def _proof(data: Gathered, setup: Setup, opened: Opened, count: int) -> Encoded:
    """Return the first test rows as tokens, some of them to be answered at length."""
    rows = data.task.encode(data.task.take(opened.corpus, range(count)), setup.network.tokenizer, setup.max_length)
    return data.task.narrow(rows, "proof")
