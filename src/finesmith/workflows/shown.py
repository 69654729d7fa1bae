"""A few training rows as the model is fed them, for a person to look at before trusting what was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finesmith.data.token_view import readable, reader_of, supervision, view

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.workflows.language.gather import Gathered
    from finesmith.workflows.language.setup import Setup as LanguageSetup
    from finesmith.workflows.prepare import Prepared
    from finesmith.workflows.setup import Setup

    Ints = npt.NDArray[np.integer[Any]]

FILE = "examples.json"
FIRST_ROWS = 3
LONGEST_LABEL = 120
MEANING = {
    "document": "One answer is learnt for the whole row.",
    "causal": "Marked tokens are learnt, each from those before it.",
    "seq2seq": "Marked tokens are learnt, each from those before it that are marked and from all that are not.",
    "masked": "Marked tokens are learnt: behind each stands what is to be guessed there. Masks of the first epoch.",
    "token": "Marked tokens are learnt: behind each stands its label.",
    "preferences": "Marked tokens are answers: chosen or good ones are to become likelier, others less so.",
    "embedding": "Each text becomes one vector; texts of one row stand one after the other.",
}


def keep(recipe: Recipe, run: Run, make: Callable[[], dict[str, Any]]) -> None:
    """Write the rows into the run folder, unless the recipe keeps all texts out of it."""
    if not recipe.output.redact:
        run.write_json(FILE, make())


def of_texts(data: Prepared, setup: Setup) -> dict[str, Any]:
    """Return training rows of a task that answers for whole texts: tokens as fed, where they were cut, the target."""
    tokens, train, tokenizer = setup.tokens, data.positions["train"], setup.network.tokenizer
    reader, lengths = reader_of(tokenizer), tokens.lengths()[train]
    originals = tokens.original_lengths[train].astype("int64")
    targets = data.targets["train"]
    examples = []
    for row, why in _chosen(lengths, originals).items():
        ids, missing = tokens.row(int(train[row])), int(originals[row] - lengths[row])
        place = None
        if missing and data.examples.pairs is None:
            place = _cut_place(ids, reader.special, tokenizer.truncation_side)
        examples.append(
            {
                **_about(int(data.examples.ids[train[row]]), data.where, why),
                "length": len(ids),
                "original_length": len(ids) + missing,
                "target": _target(data, targets[row : row + 1]),
                "tokens": view(ids, reader, cut=(len(ids) if place is None else place, missing) if missing else None),
            }
        )
    return {"task": data.task.name, "meaning": MEANING["document"], "rows": len(train), "examples": examples}


def of_tokens(recipe: Recipe, data: Gathered, setup: LanguageSetup) -> dict[str, Any]:
    """Return training rows of a task that answers for every token, as they come out of its batches in epoch 0."""
    import numpy as np

    task, encoded, reader = data.task, setup.encoded["train"], reader_of(setup.network.tokenizer)
    lengths, names = encoded.rows.lengths(), task.labels
    originals = encoded.lengths if len(encoded.lengths) == len(lengths) else lengths
    examples = []
    for row, why in _chosen(lengths, originals).items():
        batch = task.batch(encoded, np.array([row]), data.ids["train"], 0, recipe.train.seed, "cpu")
        # Where one answer is learnt for a whole text, no token has one of its own.
        told = batch.targets if batch.targets is not None and batch.targets.shape == batch.tokens.shape else None
        ends, sizes, names_of = np.cumsum(batch.lengths.numpy()), batch.lengths.tolist(), batch.ids.tolist()
        kinds: Sequence[str | None] = task.taught(encoded, batch) or [None] * len(sizes)
        for end, length, name, kind in zip(ends.tolist(), sizes, names_of, kinds, strict=True):
            ids, learnt = batch.tokens[end - length : end].numpy(), None
            labels: dict[int, str] = {}
            if told is not None and task.head != "embedding":
                learnt, labels = supervision(ids, told[end - length : end].numpy(), task.head, reader, names)
            missing = max(0, int(originals[row] - lengths[row]))
            # Where labels stand on words the end is cut off; elsewhere only the task knows what it cut.
            cut = (_cut_place(ids, reader.special, "right"), missing) if missing and task.kind == "token" else None
            examples.append(
                {
                    **_about(name, data.places, why),
                    "length": length,
                    "original_length": length + missing,
                    **({} if kind is None else {"sort": kind}),
                    **({} if learnt is None else {"supervised": int(learnt.sum())}),
                    "tokens": view(ids, reader, learnt=learnt, labels=labels, cut=cut),
                }
            )
    return {
        "task": task.name,
        "meaning": MEANING.get(task.name) or MEANING.get(task.head, MEANING["causal"]),
        "rows": len(lengths),
        "examples": examples,
    }


def _chosen(lengths: Ints, originals: Ints) -> dict[int, list[str]]:
    """Choose the first rows, the longest, and one that was cut; return why each was chosen, in that order."""
    chosen: dict[int, list[str]] = {row: ["first"] for row in range(min(FIRST_ROWS, len(lengths)))}
    chosen.setdefault(int(originals.argmax()), []).append("longest")
    cut = (originals > lengths).nonzero()[0].tolist()
    if cut and not any(originals[row] > lengths[row] for row in chosen):
        chosen[cut[0]] = []
    for row, why in chosen.items():
        why += ["cut"] if originals[row] > lengths[row] else []
    return chosen


def _cut_place(ids: Ints, special: frozenset[int], side: str) -> int:
    """Return before which place of a row the tokens are missing: inside the special tokens at its ends."""
    plain = [place for place, token in enumerate(ids.tolist()) if token not in special]
    if not plain:
        return len(ids)
    return plain[-1] + 1 if side == "right" else plain[0]


def _about(name: int, places: Mapping[int, str] | Any, why: list[str]) -> dict[str, Any]:
    return {"id": name, "where": str(places[name]), "why": why}


def _target(data: Prepared, targets: npt.NDArray[np.float64]) -> str:
    """Return the label of one row, and for a number the value that the loss sees."""
    label = data.task.decode(targets)[0]
    if data.task.kind == "number":
        return f"{label:g}, learnt as {float(data.task.tensor(targets)[0]):+.3f} standard deviations"
    if data.task.kind == "multi":
        return ", ".join(readable(str(each), LONGEST_LABEL) for each in label[:20]) or "(none)"
    return readable(str(label), LONGEST_LABEL)
