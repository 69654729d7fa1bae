"""Save the tuned model so that plain libraries load it, and prove that the saved one is the evaluated one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.errors import FinesmithError
from finesmith.run import Run, read_json

if TYPE_CHECKING:
    from finesmith.recipe import Recipe
    from finesmith.tasks.protocol import Task
    from finesmith.workflows.fit import Fitted
    from finesmith.workflows.inference import Predictor
    from finesmith.workflows.prepare import Prepared
    from finesmith.workflows.setup import Setup

PROOF_EXAMPLES = 64
MODEL_FORMAT = 1


def finish(recipe: Recipe, run: Run, data: Prepared, setup: Setup, fitted: Fitted) -> None:
    """Save the model with its card, reload it and compare outputs on held-out examples.

    Raises FinesmithError when the reloaded model answers differently: then it must not be shipped.
    """
    import numpy as np

    from finesmith.recipe import with_absolute_paths
    from finesmith.report import card

    positions = data.positions["test"][:PROOF_EXAMPLES]
    evaluated = data.task.outputs(fitted.predictor.logits(setup.tokens, positions))
    task = fold_rescaling(fitted.predictor, data.task)
    folder = run.folder / "model"
    save_predictor(fitted.predictor, folder, max_length=setup.max_length)
    run.write_json(
        "model/finesmith.json",
        {
            "format": MODEL_FORMAT,
            "task": task.state,
            "method": recipe.method.name,
            "base": with_absolute_paths(recipe).model.base,
            "revision": recipe.model.revision,
            "max_length": setup.max_length,
            "cleaning": asdict(data.cleaning),
            "text": data.columns.text,
            "text_pair": data.columns.text_pair,
            "label": data.columns.label,
            "metric": setup.metric,
            "pooling": setup.pooling,
        },
    )
    from finesmith.workflows.apply import load_model

    saved = load_model(folder, device=setup.device.device)
    again = saved.task.outputs(saved.predictor.logits(setup.tokens, positions))
    gap = float(np.abs(again - evaluated).max()) if len(positions) else 0.0
    tolerance = 1e-4 * max(1.0, float(np.abs(evaluated).max())) if len(positions) else 0.0
    run.write_json("model.json", {**read_json(run.folder / "model.json"), "reload_gap": gap})
    if gap > tolerance:
        raise FinesmithError(
            f"the saved model differs from the evaluated one by {gap:.3g} on {len(positions)} test examples; "
            f"do not use {folder}; please report this with {run.folder / 'model.json'}"
        )
    run.record("saved", reload_gap=gap, examples=len(positions))
    run.write_text("model/README.md", card.build(run.folder))


def save_predictor(predictor: Predictor, folder: Path, *, max_length: int) -> None:
    """Save a predictor in the form that plain libraries know: transformers, peft, or sentence-transformers."""
    from finesmith.models.save import save_classifier, save_features

    if predictor.head is None:
        save_classifier(predictor.network, folder)
    else:
        head = predictor.head
        save_features(
            predictor.network, folder, head.weight, head.bias, pooling=predictor.pooling, max_length=max_length
        )


def fold_rescaling(predictor: Predictor, task: Task) -> Task:
    """Fold the task's rescaling into the head, so that the saved model answers in the data's units by itself.

    Returns the task with what is left to do: nothing, or the offset where the head has no bias.
    """
    import torch

    from finesmith.models.layers import final_linear

    if task.rescaling is None:
        return task
    scale, offset = task.rescaling
    if predictor.head is not None:
        predictor.head = scaled_head(predictor.head, scale, offset)
        return task.rescaled(1.0, 0.0)
    last = final_linear(predictor.network.classifier)
    bias: torch.Tensor | None = last.bias
    with torch.no_grad():
        last.weight.mul_(scale)
        if bias is not None:
            bias.copy_(bias * scale + offset)
    return task.rescaled(1.0, offset if bias is None else 0.0)


def scaled_head(head: Any, scale: float, offset: float) -> Any:
    """Return a linear head whose outputs are scaled and shifted."""
    from dataclasses import replace

    return replace(head, weight=head.weight * scale, bias=head.bias * scale + offset)
