"""Save the tuned model so that plain libraries load it, and prove that the saved one is the evaluated one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.discreet import discreet
from finesmith.errors import FinesmithError
from finesmith.recipe import ADAPTERS
from finesmith.run import Run, read_json, whole_folder

if TYPE_CHECKING:
    from finesmith.models.forward import Network
    from finesmith.models.load import Base
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

    from finesmith.data.tokens import tokenize
    from finesmith.recipe import with_absolute_paths
    from finesmith.report import card
    from finesmith.workflows.apply import load_model
    from finesmith.workflows.seal import seal

    positions = data.positions["test"][:PROOF_EXAMPLES]
    evaluated = data.task.outputs(fitted.predictor.logits(setup.tokens, positions))
    task = fold_rescaling(fitted.predictor, data.task)
    with whole_folder(run.folder / "model") as folder:
        save_predictor(fitted.predictor, folder, max_length=setup.max_length)
        if recipe.method.name in ADAPTERS:
            name_base(folder, setup.base)
        run.write_json(
            f"{folder.name}/finesmith.json",
            {
                "format": MODEL_FORMAT,
                "task": task.state,
                "method": recipe.method.name,
                "base": discreet(with_absolute_paths(recipe).model.base),
                "revision": recipe.model.revision,
                "base_sha256": setup.base.sha256,
                "max_length": setup.max_length,
                "cleaning": asdict(data.cleaning),
                "reading": {"encoding": recipe.data.encoding, "commas": recipe.data.separator != ","},
                "text": data.columns.text,
                "text_pair": data.columns.text_pair,
                "label": data.columns.label,
                "metric": setup.metric,
                "pooling": setup.pooling,
            },
        )
        saved = load_model(folder, device=setup.device.device)
        # What is shipped holds a tokenizer too, so the proof begins with the texts.
        proof = data.examples.take(positions)
        tokenizer = saved.predictor.network.tokenizer
        tokens = tokenize(proof.texts, proof.pairs, tokenizer, max_length=setup.max_length, cache=None)
        again = saved.task.outputs(saved.predictor.logits(tokens, np.arange(len(positions))))
        gap = float(np.abs(again - evaluated).max()) if len(positions) else 0.0
        tolerance = 1e-4 * max(1.0, float(np.abs(evaluated).max())) if len(positions) else 0.0
        run.write_json("model.json", {**read_json(run.folder / "model.json"), "reload_gap": gap})
        if gap > tolerance:
            raise FinesmithError(
                f"the saved model differs from the evaluated one by {gap:.3g} on {len(positions)} test examples; "
                f"it was not kept; please report this with {run.folder / 'model.json'}"
            )
        run.record("saved", reload_gap=gap, examples=len(positions))
        run.write_text(f"{folder.name}/README.md", card.build(run.folder))
        seal(folder)


def save_predictor(predictor: Predictor, folder: Path, *, max_length: int) -> None:
    """Save a predictor in the form that plain libraries know: transformers, peft, or sentence-transformers."""
    from finesmith.models.save import save_features

    if predictor.head is None:
        save_network(predictor.network, folder)
    else:
        head = predictor.head
        save_features(
            predictor.network, folder, head.weight, head.bias, pooling=predictor.pooling, max_length=max_length
        )


def save_network(network: Network, folder: Path) -> None:
    """Save a whole model in the form of transformers, or an adapter in that of peft."""
    if network.module is network.classifier:
        from finesmith.models.save import save_classifier

        save_classifier(network, folder)
    else:
        from finesmith.models.adapter_files import save_adapter

        save_adapter(network, folder)


def name_base(folder: Path, base: Base) -> None:
    """Name the base model in a saved adapter's configuration as others can know it, not as a path in a home folder."""
    from finesmith.models.load import BUNDLED_NAME

    path = folder / "adapter_config.json"
    known = base.name if base.name == BUNDLED_NAME else discreet(base.location)
    config = {**json.loads(path.read_text("utf-8")), "base_model_name_or_path": known}
    path.write_text(json.dumps(config, indent=2, sort_keys=True), "utf-8")


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
