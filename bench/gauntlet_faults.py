"""The faults of the gauntlet: what peers got wrong, each in several variants, put into runs of several tasks."""

# ruff: noqa: ARG001, ARG005 - a fault is given all there is, and few need all of it
from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gauntlet import Case, Patch
from gauntlet_chat import CHAT
from gauntlet_written import faults_written

LORA = {"method.name": "lora", "train.learning_rate": 1e-2, "train.warmup": 0.0}
WORDS_ADDED = {"data.domain_words": ["moviegoer", "storyline"]}
PADDED = {"model.attention": "padded"}
Loaded = Callable[[Patch, Any, Any], None]
FAULTS: list[Case] = list(CHAT)


def put(fault: str, tasks: Sequence[str], variants: Mapping[str, Loaded], **values: Any) -> None:
    """Add a fault that is put in once model and data are loaded."""
    given = values.get("values", {})
    FAULTS.extend(Case(fault, name, task, given, loaded=loaded) for task in tasks for name, loaded in variants.items())


def losses(change: Callable[[Any, int, Any], tuple[Any, int]]) -> Loaded:
    """Change what a loss returns: (sum, count, batch) -> (sum, count)."""

    def loaded(patch: Patch, data: Any, setup: Any) -> None:
        from finesmith.workflows import fit
        from finesmith.workflows.language import fit as language_fit

        for module in (fit, language_fit):

            def loss_of(*given: Any, original: Any = module.loss_of) -> Any:
                whole = original(*given)
                return lambda batch: change(*whole(batch), batch)

            patch.set(module, "loss_of", loss_of)

    return loaded


def units_by_part(patch: Patch, data: Any, setup: Any) -> None:
    """Divide by the units of a micro-batch, not of the batch."""
    from finesmith.workflows import fit
    from finesmith.workflows.language import fit as language_fit

    for module in (fit, language_fit):

        def plan_of(*given: Any, original: Any = module.plan_of) -> Any:
            plan = original(*given)

            def batches(step: int) -> Any:
                made, units = plan.batches(step)
                return made, max(1, units // len(made))

            return replace(plan, batches=batches)

        patch.set(module, "plan_of", plan_of)


ACCUMULATED: dict[str, Loaded] = {
    "a mean in place of a sum": losses(lambda loss, count, _: (loss / max(1, count), count)),
    "weighted by the longest row": losses(lambda loss, count, b: (loss * b.lengths.max() / 10, count)),
    "units counted by micro-batch": units_by_part,
}
put("accumulation is not the large batch", ("classification", "token-classification", "causal-text"), ACCUMULATED)
put("accumulation is not the large batch", ("preferences",), ACCUMULATED, values={"train.learning_rate": 5e-3})


def targets(change: Callable[[Any, Any], Any]) -> Loaded:
    """Change the targets of the training rows: (targets, rows) -> targets."""

    def loaded(patch: Patch, data: Any, setup: Any) -> None:
        encoded = setup.encoded["train"]
        rows = replace(encoded.rows, targets=change(encoded.rows.targets.copy(), encoded.rows))
        setup.encoded["train"] = replace(encoded, rows=rows)

    return loaded


def where(condition: Callable[[Any, Any], Any], value: Any) -> Callable[[Any, Any], Any]:
    """Put a value in place of targets that meet a condition."""
    import numpy as np

    return lambda found, rows: np.where(condition(found, rows), value, found).astype(found.dtype)


def rolled(by: int) -> Callable[[Any, Any], Any]:
    """Shift targets once more."""
    import numpy as np

    return lambda found, rows: np.roll(found, by)


put(
    "mask of zeros or ones", ("token-classification", "causal-text"),
    {"all zeros": targets(where(lambda t, _: t >= -100, -100))},
)  # fmt: skip
put(
    "mask of zeros or ones", ("token-classification",),
    {
        "all ones": targets(where(lambda t, _: t < 0, 0)),
        "special tokens too": targets(where(lambda t, rows: (t < 0) & (rows.tokens < 4), 0)),
    },
)  # fmt: skip
put(
    "targets shifted twice, or not", ("causal-text",),
    {"twice": targets(rolled(-1)), "not at all": targets(rolled(1)), "by three": targets(rolled(-2))},
)  # fmt: skip
put(
    "stop token never supervised", ("causal-text",),
    {
        "taken for padding": targets(where(lambda t, _: t == 3, -100)),
        "the last target of a row left out": targets(where(lambda t, rows: _last(rows), -100)),
        "another token in its place": targets(where(lambda t, _: t == 3, 5)),
    },
)  # fmt: skip


def _last(rows: Any) -> Any:
    import numpy as np

    places = np.zeros(len(rows.tokens), bool)
    places[rows.offsets[1:] - 2] = True
    return places


# --- files ------------------------------------------------------------------------------------------------------------


def file_fault(fault: str, variant: str, tasks: Sequence[str], change: Any, values: Any = (), told: str = "") -> None:
    """Add a fault of the files."""
    FAULTS.extend(Case(fault, variant, task, dict(values), files=change, told=told) for task in tasks)


def other_data(change: Callable[[str], str]) -> Any:
    """Change the text of the data file."""

    def files(folder: Path, tree: dict[str, Any]) -> dict[str, Any]:
        source = Path(tree["data"]["train"])
        folder.mkdir()
        path = folder / source.name
        path.write_text(change(source.read_text("utf-8")), "utf-8")
        return {**tree, "data": {**tree["data"], "train": str(path)}}

    return files


def other_model(change: Callable[[Path], None]) -> Any:
    """Change a copy of the base model's folder."""

    def files(folder: Path, tree: dict[str, Any]) -> dict[str, Any]:
        shutil.copytree(tree["model"]["base"], folder)
        change(folder)
        return {**tree, "model": {**tree["model"], "base": str(folder)}}

    return files


def rows_begin(line: str) -> str:
    head, *rest = line.split("\n")
    return "\n".join([head, *(f"[CLS] {row}" if row else row for row in rest)])


def template(single: list[str]) -> Callable[[Path], None]:
    """Have the tokenizer put other tokens around a text."""

    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        said = json.loads(path.read_text("utf-8"))
        pieces = [
            {"Sequence": {"id": "A", "type_id": 0}} if one == "$A" else {"SpecialToken": {"id": one, "type_id": 0}}
            for one in single
        ]
        said["post_processor"]["single"] = pieces
        path.write_text(json.dumps(said), "utf-8")

    return change


DOUBLED = ("classification", "regression")
file_fault("double BOS", "the texts write it too", DOUBLED, other_data(rows_begin))


def second_beginning(patch: Patch, data: Any, setup: Any) -> None:
    """Put one more before every row; raw text that spells it is no way to do so, for there it is plain text."""
    import numpy as np

    encoded = setup.encoded["train"]
    rows = encoded.rows
    tokens, targets = np.insert(rows.tokens, rows.offsets[:-1], 2), np.insert(rows.targets, rows.offsets[:-1], -100)
    more = replace(rows, tokens=tokens, targets=targets, offsets=rows.offsets + np.arange(len(rows) + 1))
    setup.encoded["train"] = replace(encoded, rows=more)


put("double BOS", ("causal-text", "token-classification"), {"the data write it too": second_beginning})
file_fault(
    "double BOS", "the tokenizer writes it twice", DOUBLED, other_model(template(["[CLS]", "[CLS]", "$A", "[SEP]"]))
)
file_fault(
    "double BOS", "the tokenizer writes it twice", ("causal-text",), other_model(template(["[CLS]", "[CLS]", "$A"]))
)
file_fault("double BOS", "three times", (*DOUBLED, "causal-text"), other_model(template(["[CLS]"] * 3 + ["$A"])))


def weights(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Change the tensors of the base model."""

    def rewrite(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path, {"format": "pt"})

    return other_model(rewrite)


def scaled(name: str, factor: float) -> Any:
    return weights(lambda found: {k: v * factor if name in k else v for k, v in found.items()})


NUMBERS = ("classification", "token-classification", "causal-text")
file_fault("numbers that are none", "NaN in a table", NUMBERS, scaled("embed", float("nan")))
file_fault("numbers that are none", "weights that overflow", NUMBERS, scaled(".", 1e30))
put(
    "numbers that are none", ("classification", "token-classification", "causal-text"),
    {"a loss in half precision overflows": losses(lambda loss, count, _: ((loss.half() * 60000).float(), count))},
)  # fmt: skip
BODY = ("classification", "token-classification", "masked-text")
file_fault(
    "base weights not loaded", "other names", BODY, weights(lambda found: {f"net.{k}": v for k, v in found.items()})
)
file_fault(
    "base weights not loaded", "a layer is missing", BODY,
    weights(lambda found: {k: v for k, v in found.items() if "layer.1." not in k}),
)  # fmt: skip
file_fault(
    "base weights not loaded", "no word embeddings", BODY,
    weights(lambda found: {k: v for k, v in found.items() if "word_embeddings" not in k and "decoder" not in k}),
)  # fmt: skip


def head_times(factor: float) -> Loaded:
    def loaded(patch: Patch, data: Any, setup: Any) -> None:
        import torch

        with torch.no_grad():
            for name, parameter in setup.network.module.named_parameters():
                if "classifier" in name or "lm_head" in name or "decoder" in name:
                    parameter.mul_(factor).add_(factor / 50 if parameter.ndim == 1 else 0.0)
                    if parameter.ndim == 1:
                        parameter[0] += factor

    return loaded


def body_times(patch: Patch, data: Any, setup: Any) -> None:
    """Blow up what the head reads."""
    import torch

    with torch.no_grad():
        for name, parameter in setup.network.module.named_parameters():
            if "norm" in name.lower() or "pooler" in name or "classifier" in name:
                parameter.mul_(300.0)


put(
    "an absurd initial loss", ("classification", "token-classification"),
    {"a head a thousand times too large": head_times(1000.0), "blown-up states": body_times,
     "a loss that counts rows ten times": losses(lambda loss, count, _: (loss * 0 - 1.0, count))},
)  # fmt: skip


# --- the network ------------------------------------------------------------------------------------------------------


def merged_rows(size: int | None) -> Loaded:
    """Have rows of a batch share their attention: all of them, or so many at a time."""

    def loaded(patch: Patch, data: Any, setup: Any) -> None:
        from finesmith.models import forward, token_loss
        from finesmith.models.attention import layout_of as original

        def merged(lengths: Any) -> Any:
            sizes = lengths.tolist()
            return lengths.new_tensor([sum(sizes[at : at + (size or len(sizes))]) for at in
                                       range(0, len(sizes), size or len(sizes))])  # fmt: skip

        def of_tokens(lengths: Any) -> Any:
            return replace(original(merged(lengths)), positions=original(lengths).positions)

        def of_rows(lengths: Any) -> Any:
            # A head reads the first token of every row, so only the attention takes them together.
            return replace(original(lengths), groups=original(merged(lengths)).groups)

        patch.set(forward, "layout_of", of_rows)
        patch.set(token_loss, "layout_of", of_tokens)

    return loaded


def leaking(share: float) -> Loaded:
    """Mix the mean of a batch into every row's states."""

    def loaded(patch: Patch, data: Any, setup: Any) -> None:
        from finesmith.models import forward, token_loss

        logits, states = forward.logits, token_loss.token_states
        patch.set(forward, "logits", lambda n, b: (lambda x: x + share * x.mean(0))(logits(n, b)))
        patch.set(token_loss, "token_states", lambda n, b, p: (lambda x: x + share * x.mean(0))(states(n, b, p)))

    return loaded


put(
    "packed rows attend to each other", ("classification", "token-classification", "causal-text", "masked-text"),
    {"all rows as one text": merged_rows(None), "two and two": merged_rows(2), "by their mean": leaking(0.2)},
)  # fmt: skip


def drop_mask(patch: Patch, data: Any, setup: Any) -> None:
    """Have the model be called without its mask."""
    body = setup.network.classifier.base_model
    original = body.forward
    patch.set(body, "forward", lambda *a, **k: original(*a, **{n: v for n, v in k.items() if n != "attention_mask"}))


def flip_padding(patch: Patch, data: Any, setup: Any) -> None:
    """Have the model read every padded row from its other end: padding on the left, positions as they come."""
    body = setup.network.classifier.base_model
    original = body.forward

    def forward(*given: Any, **named: Any) -> Any:
        mask = named.get("attention_mask")
        if mask is None or bool(mask.all()):
            return original(*given, **named)
        import torch

        order = torch.stack([torch.cat([row.nonzero()[:, 0].new_tensor(range(int(row.sum()), len(row))),
                                        torch.arange(int(row.sum()))]) for row in mask])  # fmt: skip
        moved = {n: v.gather(1, order) if getattr(v, "shape", ()) == mask.shape else v for n, v in named.items()}
        found = original(*given, **moved)
        back = order.argsort(1)[..., None].expand_as(found.last_hidden_state)
        found.last_hidden_state = found.last_hidden_state.gather(1, back)
        return found

    patch.set(body, "forward", forward)


def short_mask(patch: Patch, data: Any, setup: Any) -> None:
    """Mask one real token of every padded row."""
    body = setup.network.classifier.base_model
    original = body.forward

    def forward(*given: Any, **named: Any) -> Any:
        mask = named.get("attention_mask")
        if mask is not None and not bool(mask.all()):
            mask = mask.clone()
            mask[:, 1] = 0
            named["attention_mask"] = mask
        return original(*given, **named)

    patch.set(body, "forward", forward)


put(
    "padding changes answers", ("classification", "token-classification", "masked-text"),
    {"no mask": drop_mask, "on the left, positions from zero": flip_padding, "a mask one short": short_mask},
    values=PADDED,
)  # fmt: skip


def begin_by(how: str) -> Loaded:
    """Have prompts of a batch be padded wrongly before they are continued."""

    def loaded(patch: Patch, data: Any, setup: Any) -> None:
        import torch

        from finesmith.models.runner import Rows, Runner

        original = Runner.begin

        def begin(self: Any, prompts: Any) -> Any:
            if len({len(prompt) for prompt in prompts}) == 1:
                return original(self, prompts)
            width = max(map(len, prompts))
            blank = [[0] * (width - len(prompt)) for prompt in prompts]
            if how == "on the right":
                return original(self, [[*p, *b] for p, b in zip(prompts, blank, strict=True)])
            if how == "on the left, without a mask":
                return original(self, [[*b, *p] for p, b in zip(prompts, blank, strict=True)])
            rows = Rows(self, torch.tensor([[*p, *p * width][:width] for p in prompts]), None)
            return rows, rows.read_all(1)[:, -1]

        patch.set(Runner, "begin", begin)

    return loaded


put(
    "padding side in generation", ("causal-text",),
    {how: begin_by(how) for how in ("on the right", "on the left, without a mask", "by repeating the prompt")},
)  # fmt: skip
put(
    "padding side in generation", ("causal-text",),
    {f"{how}, tied": begin_by(how) for how in ("on the right", "on the left, without a mask")},
    values={"model.base": "@tied"},
)  # fmt: skip


def parameters(name: str) -> Callable[[Any], Iterator[Any]]:
    return lambda setup: (p for n, p in setup.network.module.named_parameters() if name in n and p.requires_grad)


def freeze(name: str) -> Loaded:
    def loaded(patch: Patch, data: Any, setup: Any) -> None:
        for parameter in list(parameters(name)(setup)):
            parameter.requires_grad_(False)

    return loaded


def silence(name: str) -> Loaded:
    def loaded(patch: Patch, data: Any, setup: Any) -> None:
        for parameter in parameters(name)(setup):
            parameter.register_hook(lambda gradient: gradient * 0)

    return loaded


def copies(patch: Patch, data: Any, setup: Any) -> None:
    """Have the optimiser step copies of the weights."""
    import torch

    from finesmith.workflows import training

    original = training.new_optimizer

    def new_optimizer(*given: Any) -> Any:
        optimizer = original(*given)
        for group in optimizer.param_groups:
            group["params"] = [torch.nn.Parameter(p.detach().clone()) for p in group["params"]]
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        return optimizer

    patch.set(training, "new_optimizer", new_optimizer)


def nudge(patch: Patch, data: Any, setup: Any) -> None:
    """Move a frozen tensor in every step."""
    import torch

    from finesmith.train.adamw import AdamW

    frozen = next(p for p in setup.network.module.parameters() if not p.requires_grad)
    original = AdamW.step

    def step(self: Any) -> None:
        original(self)
        with torch.no_grad():
            frozen.view(-1)[0] += 1e-3

    patch.set(AdamW, "step", step)


put(
    "learns nothing in silence", ("classification", "token-classification", "causal-text"),
    {"half of the adapter frozen": freeze("lora_B"), "gradients set to zero": silence("lora_"),
     "the optimiser has copies": copies, "what is frozen moves": nudge},
    values=LORA,
)  # fmt: skip
put(
    "learns nothing in silence", ("classification", "masked-text"),
    {"a layer gets no gradient": silence("layer.1."), "the optimiser has copies": copies},
)  # fmt: skip
put(
    "a tiny batch cannot be fitted", ("classification", "masked-text"),
    {
        "the loss is cut off": losses(lambda loss, count, _: (loss.detach().clone().requires_grad_(), count)),
        "the loss is constant": losses(lambda loss, count, _: (loss * 0 + 2.0 * count, count)),
        "the loss has the wrong sign": losses(lambda loss, count, _: (-loss, count)),
    },
)  # fmt: skip


# --- labels and splits ------------------------------------------------------------------------------------------------


def rename(order: Callable[[list[str]], list[str]]) -> Loaded:
    def loaded(patch: Patch, data: Any, setup: Any) -> None:
        config = setup.network.classifier.config
        config.id2label = dict(enumerate(order(list(config.id2label.values()))))

    return loaded


def swap_targets(every: int) -> Loaded:
    def loaded(patch: Patch, data: Any, setup: Any) -> None:
        if not hasattr(setup, "encoded"):
            data.targets["train"][::every] = 1 - data.targets["train"][::every]
            return
        count = len(data.task.labels)
        targets(where(lambda t, _: t >= 0, 0) if every == 1 else lambda t, _: _swapped(t, every, count))(
            patch, data, setup
        )

    return loaded


def _swapped(found: Any, every: int, count: int) -> Any:
    import numpy as np

    places = np.flatnonzero(found >= 0)[::every]
    found[places] = (found[places] + 1) % count
    return found


put(
    "labels in another order", ("classification", "token-classification"),
    {"the head's names reversed": rename(lambda names: names[::-1]),
     "generic names": rename(lambda names: [f"LABEL_{i}" for i in range(len(names))]),
     "targets exchanged": swap_targets(1), "every third target exchanged": swap_targets(3)},
)  # fmt: skip


def overlap(one: str, other: str) -> Loaded:
    """Put rows of one split into another one."""

    def loaded(patch: Patch, data: Any, setup: Any) -> None:
        import numpy as np

        if hasattr(setup, "encoded"):
            rows = data.test._corpus if one == "test" else data.corpora[one]
            data.corpora[other] = data.task.join([data.corpora[other], data.task.take(rows, range(5))])
        else:
            more = data.positions[one][:5]
            data.positions[other] = np.concatenate([data.positions[other], more])
            labels = [data.examples.labels[int(i)] for i in more]
            data.targets[other] = np.concatenate([data.targets[other], data.task.encode(labels, [""] * len(labels))])

    return loaded


put(
    "the same rows in two splits", ("classification", "token-classification", "causal-text"),
    {"test in train": overlap("test", "train"), "validation in train": overlap("validation", "train"),
     "test in validation": overlap("test", "validation")},
)  # fmt: skip


def copied_test(folder: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """Name a test file that holds a part of the training file."""
    folder.mkdir()
    head, *rows = Path(tree["data"]["train"]).read_text("utf-8").splitlines()
    path = folder / "test.csv"
    path.write_text("\n".join([head, *rows[:30]]), "utf-8")
    return {**tree, "data": {**tree["data"], "test": str(path)}}


file_fault(
    "the same rows in two splits", "a test file copied from train", ("classification", "regression"), copied_test,
    told="leakage",
)  # fmt: skip


# --- words, saving, merging -------------------------------------------------------------------------------------------


def unlearnt_rows(patch: Patch, data: Any, setup: Any) -> None:
    """Give the rows of added words no gradient."""
    table = setup.network.classifier.get_input_embeddings().weight
    count = len(setup.added_words)

    def hook(gradient: Any) -> Any:
        gradient = gradient.clone()
        gradient[-count:] = 0
        return gradient

    table.register_hook(hook)


def old_tokenizer(patch: Patch, data: Any, setup: Any) -> None:
    """Save the tokenizer of the base model in place of the one with the words."""
    from finesmith.models import save
    from finesmith.models.load import load_tokenizer

    original = save.save_classifier

    def save_classifier(network: Any, folder: Path) -> None:
        original(network, folder)
        load_tokenizer(setup.base).save_pretrained(folder)

    patch.set(save, "save_classifier", save_classifier)


def old_rows(patch: Patch, data: Any, setup: Any) -> None:
    """Save zeros in place of the vectors of added words."""
    rewrite_saved(
        patch, "word_embeddings", lambda t: t[:-1].clone() if t.ndim == 3 else _zeroed(t, len(setup.added_words))
    )


def _zeroed(tensor: Any, count: int) -> Any:
    tensor = tensor.clone()
    tensor[-count:] = 0
    return tensor


def rewrite_saved(patch: Patch, name: str, change: Callable[[Any], Any]) -> None:
    """Change tensors of a model after it was saved."""
    from safetensors.torch import load_file, save_file

    from finesmith.models import save

    original = save.save_classifier

    def save_classifier(network: Any, folder: Path) -> None:
        original(network, folder)
        path = folder / "model.safetensors"
        found = {k: change(v) if name in k else v for k, v in load_file(path).items()}
        save_file({k: v.contiguous() for k, v in found.items() if v is not None}, path, {"format": "pt"})

    patch.set(save, "save_classifier", save_classifier)


for one, file in (("classification", "@worded"), ("regression", "@starred")):
    put(
        "new words not trained or not saved", (one,),
        {"frozen": freeze("word_embeddings"), "no gradient": unlearnt_rows, "the tokenizer forgets them": old_tokenizer,
         "their vectors are lost": old_rows},
        values={**WORDS_ADDED, "data.train": file},
    )  # fmt: skip


def untied(patch: Patch, data: Any, setup: Any) -> None:
    """Give the output embeddings a tensor of their own, which no configuration tells of."""
    import torch

    output = setup.network.classifier.get_output_embeddings()
    output.weight = torch.nn.Parameter(output.weight.detach().clone())


def flag(patch: Patch, data: Any, setup: Any) -> None:
    """Have the configuration say the opposite."""
    config = setup.network.classifier.config.get_text_config()
    config.tie_word_embeddings = not config.tie_word_embeddings


def lost_embeddings(patch: Patch, data: Any, setup: Any) -> None:
    """Save other vectors."""
    rewrite_saved(patch, "embed", lambda tensor: tensor * 0.5)


TIED = {"untied by hand": untied, "the configuration says otherwise": flag, "others are saved": lost_embeddings}
put("tied embeddings lost", ("causal-text",), TIED, values={"model.base": "@tied"})
put("tied embeddings lost", ("masked-text",), TIED)


def adapter_file(change: Callable[[Path], None]) -> Loaded:
    """Change an adapter after it was saved."""

    def loaded(patch: Patch, data: Any, setup: Any) -> None:
        from finesmith.models import adapter_files

        original = adapter_files.save_adapter

        def save_adapter(network: Any, folder: Path) -> None:
            original(network, folder)
            change(folder)

        patch.set(adapter_files, "save_adapter", save_adapter)

    return loaded


def other_scale(folder: Path) -> None:
    path = folder / "adapter_config.json"
    said = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**said, "lora_alpha": said["lora_alpha"] * 4}), "utf-8")


def empty_factors(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    save_file({k: v * 0 if "lora_B" in k else v for k, v in load_file(path).items()}, path, {"format": "pt"})


def merged_otherwise(patch: Patch, data: Any, setup: Any) -> None:
    """Change the merged model's weights after it was written."""
    from safetensors.torch import load_file, save_file

    from finesmith.models import merge as module

    original = module.merge

    def merge(base: str, adapter: Path, out: Path, **given: Any) -> Any:
        report = original(base, adapter, out, **given)
        path = out / "model.safetensors"
        save_file({k: v * 1.02 for k, v in load_file(path).items()}, path, {"format": "pt"})
        return report

    patch.set(module, "merge", merge)


put(
    "merged model is another one", ("causal-text", "token-classification"),
    {"another scale": adapter_file(other_scale), "factors lost": adapter_file(empty_factors),
     "changed after the merge": merged_otherwise},
    values=LORA,
)  # fmt: skip


# --- the plan ---------------------------------------------------------------------------------------------------------


def plan_fault(fault: str, tasks: Sequence[str], variants: Mapping[str, Mapping[str, Any]]) -> None:
    FAULTS.extend(Case(fault, name, task, values) for task in tasks for name, values in variants.items())


plan_fault(
    "a learning rate out of range", ("classification", "token-classification", "causal-text"),
    {"0.9": {"train.learning_rate": 0.9}, "0.3": {"train.learning_rate": 0.3}, "1e-9": {"train.learning_rate": 1e-9}},
)  # fmt: skip
plan_fault(
    "a setting that nothing reads", ("classification", "causal-text"),
    {"misspelt": {"train.learning_rte": 1e-3}, "of another method": {"method.lora": {"r": 4}},
     "of another task": {"train.focal_gamma": 3.0}},
)  # fmt: skip
plan_fault("an answer cut away", ("token-classification",), {"6 tokens": {"data.train": "@long", "data.max_length": 6},
           "8 tokens": {"data.train": "@long", "data.max_length": 8}, "4 tokens": {"data.train": "@long",
           "data.max_length": 4}})  # fmt: skip


def little_memory(size: int, **more: Any) -> Loaded:
    def loaded(patch: Patch, data: Any, setup: Any) -> None:
        from finesmith.train.memory import estimate
        from finesmith.workflows.setup import memory_shape

        shape = memory_shape(patch.recipe, setup.network, 0)
        setup.device = replace(setup.device, memory_free=size)
        lengths = [512] * 8 if more else [16] * setup.micro_batch_size
        setup.forecast = estimate(shape, lengths, free=size, dtype=setup.device.dtype).as_json()

    return loaded


put(
    "more memory than there is", ("classification", "causal-text"),
    {"1 MB": little_memory(10**6), "100 MB": little_memory(10**8),
     "rows far too long": little_memory(2 * 10**8, long=1)},
)  # fmt: skip


# --- resuming ---------------------------------------------------------------------------------------------------------


def edited(key: str, old: str, new: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        path = run / "recipe.yaml"
        text = path.read_text("utf-8")
        line = next(one for one in text.splitlines() if one.strip().startswith(f"{key}: "))
        path.write_text(text.replace(line, line.replace(old, new)), "utf-8")

    return change


def another_order(run: Path) -> None:
    _copy_and_point(run, "train", lambda path: path.write_text(path.read_text("utf-8") + "\n", "utf-8"))


def another_base(run: Path) -> None:
    from safetensors.torch import load_file, save_file

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file({k: v * 1.01 for k, v in load_file(path).items()}, path, {"format": "pt"})

    _copy_and_point(run, "base", change)


def _copy_and_point(run: Path, key: str, change: Callable[[Path], Any]) -> None:
    """Change a copy of what a recipe names, and have it name the copy."""
    import yaml

    recipe = run / "recipe.yaml"
    section = "data" if key == "train" else "model"
    found = Path(yaml.safe_load(recipe.read_text("utf-8"))[section][key])
    copy = run.with_name(f"{run.name}-{found.name}")
    (shutil.copytree if found.is_dir() else shutil.copyfile)(found, copy)
    change(copy)
    recipe.write_text(recipe.read_text("utf-8").replace(str(found), str(copy)), "utf-8")


FAULTS.extend(
    Case("resumed otherwise", name, task, resumed=change)
    for task in ("classification", "token-classification")
    for name, change in {
        "other data": another_order,
        "another seed": edited("seed", "0", "1"),
        "another base model": another_base,
    }.items()
)
FAULTS.extend(replace(case, variant=f"written: {case.variant}") for case in faults_written())
