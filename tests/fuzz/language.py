"""Cases of data for tasks that answer for every token: tagged words, spans, raw text; all is read, or one message."""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finesmith.errors import FinesmithError
from finesmith.recipe.keys import keys
from fuzz.mutate import ODD_TEXTS, Row, mutate_bytes, mutate_rows, mutate_tree, odd_value
from fuzz.oracle import Outcome, judge, require
from fuzz.tables import PLAIN, Notebook, _damage_folder, _write_file

NER, CAUSAL, MASKED = "token-classification", "causal-text", "masked-text"
FORMS: Mapping[str, tuple[str, ...]] = {
    NER: ("conll", "conll", "conll", "txt", "tsv", "conll.gz", "lists.jsonl", "lists.json", "lists.parquet",
          "spans.jsonl", "spans.jsonl", "spans.json"),
    CAUSAL: ("txt", "txt", "md", "txt.gz", "folder", "folder", "texts.jsonl", "texts.csv"),
}  # fmt: skip
OPTIONS: Mapping[str, tuple[dict[str, Any], ...]] = {
    NER: ({}, {}, {}, {"data.encoding": "utf-8"}, {"data.max_length": 12}, {"data.max_length": 4},
          {}, {}, {"data.text": "tokens"}, {"data.label": "ner_tags"}, {"data.audit.conflicting_labels": "drop"},
          {"data.audit.near_duplicates": "drop", "data.audit.length": "drop"}),
    CAUSAL: ({}, {}, {}, {"data.encoding": "utf-16"}, {"data.document_separator": "\n"}, {"data.max_length": 9},
             {"data.document_separator": "---"}, {"data.overlap": 3, "data.max_length": 16}, {"data.overlap": 600},
             {}, {}, {"data.max_length": 4}, {"data.text": "text"}, {"data.audit.personal_data": "drop"}),
}  # fmt: skip


class Workshop:
    """What all cases share: a tokenizer that can end a text, and words enough that documents are no copies."""

    def __init__(self) -> None:
        from tiny import bert_tokenizer

        self.tokenizer: Any = bert_tokenizer()
        self.tokenizer.eos_token = "[SEP]"


WORDS = tuple(f"{first}{second}{third}" for first in "bdfgk" for second in "aeiou" for third in ("n", "st", "l", "ça"))


def run_case(draw: random.Random, folder: Path, shop: Workshop) -> Outcome:
    """Write data of a task, mostly damaged, gather and encode it, and judge what comes of it."""
    from finesmith.recipe import from_dict
    from finesmith.recipe.source import merged
    from finesmith.workflows.language.gather import gather

    task = draw.choice([NER, NER, CAUSAL, MASKED])
    kind = NER if task == NER else CAUSAL
    path = _write(draw, kind, folder)
    tree: dict[str, Any] = {"task": task, "data": {"train": str(path)}, "output": {"cache": "none"}}
    for key, value in draw.choice(OPTIONS[kind]).items():
        tree = merged(tree, tuple(key.split(".")), value)
    book = Notebook(folder)
    places = (path.name, *(key for key in keys() if "." in key))
    try:
        recipe = from_dict(tree)
        data = gather(recipe, book, shop.tokenizer, longest=64)  # type: ignore[arg-type]
    except FinesmithError as error:
        judge(str(error), places)
        return Outcome("refused", str(error))
    _accounted(data, book)
    try:
        _encoded(data, book, shop)
    except FinesmithError as error:
        judge(str(error), places)
        return Outcome("refused", str(error))
    _read_exactly(path, task, recipe.data.encoding, recipe.data.document_separator)
    return Outcome("accepted", "; ".join(book.said)[:300])


# --- writing ----------------------------------------------------------------------------------------------------


def _sentence(draw: random.Random, scheme: str) -> list[tuple[str, str]]:
    words = draw.choices((*PLAIN, *WORDS), k=draw.randint(1, 8))
    if scheme == "plain":
        return [(word, draw.choice(["NOUN", "VERB", "DET"])) for word in words]
    tags = ["O"] * len(words)
    at = draw.randrange(len(words))
    label = draw.choice(["PER", "LOC"])
    tags[at] = f"{'I' if scheme == 'IOB1' else 'B'}-{label}"
    if at + 1 < len(words) and draw.random() < 0.5:
        tags[at + 1] = f"I-{label}"
    return list(zip(words, tags, strict=True))


def _write(draw: random.Random, kind: str, folder: Path) -> Path:
    form, how = draw.choice(FORMS[kind]), draw.random()
    path = folder / f"corpus.{form.removeprefix('lists.').removeprefix('spans.').removeprefix('texts.')}"
    if kind == NER:
        scheme = draw.choice(["IOB2", "IOB2", "IOB1", "plain"])
        sentences = [_sentence(draw, scheme) for _ in range(draw.choice([6, 30, 30, 40]))]
        rows = [_row(draw, form, each) for each in sentences]
        raw = _conll(draw, sentences)
    else:
        texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 60))) for _ in range(draw.choice([2, 20, 20, 30]))]
        rows = [{"text": text} for text in texts]
        raw = draw.choice(["\n\n", "\n\n", "\n\n", "\n\n\n", "\r\n\r\n", "\n", "\n---\n"]).join(texts).encode()
    if form == "folder":
        return _write_folder(draw, [row["text"] for row in rows], folder / "corpus", damaged=how >= 0.3)
    if form.partition(".")[0] in ("lists", "spans", "texts"):
        _write_rows(draw, rows, how, path)
        return path
    if how >= 0.3:
        raw = mutate_bytes(draw, raw)
    path.write_bytes(gzip.compress(raw, 1, mtime=0) if form.endswith(".gz") else raw)
    if form.endswith(".gz") and how >= 0.9:
        path.write_bytes(mutate_bytes(draw, path.read_bytes()))
    return path


def _row(draw: random.Random, form: str, sentence: Sequence[tuple[str, str]]) -> Row:
    if form.startswith("lists"):
        return {"tokens": [word for word, _ in sentence], "ner_tags": [tag for _, tag in sentence]}
    text, spans = " ".join(word for word, _ in sentence), []
    start = 0
    for word, tag in sentence:
        if tag[:2] in ("B-", "I-"):
            spans.append({"start": start, "end": start + len(word), "label": tag[2:]})
        start += len(word) + 1
    if spans and draw.random() < 0.03:
        spans[0][draw.choice(["start", "end", "label"])] = odd_value(draw)
    return {"text": text, "entities": spans}


def _conll(draw: random.Random, sentences: Sequence[Sequence[tuple[str, str]]]) -> bytes:
    mark, end = draw.choice(["\t", "\t", " ", "  "]), draw.choice(["\n", "\n", "\n", "\r\n", "\r"])
    extra = draw.choice([[], [], ["-X-"], ["NN", "B-NP"]])
    lines = []
    for number, sentence in enumerate(sentences):
        if number % 5 == 0 and draw.random() < 0.3:
            lines += [draw.choice(["-DOCSTART-", "# newdoc", "# text = a", "-DOCSTART- -X- O O"]), ""]
        lines += [mark.join([word, *extra, tag]) for word, tag in sentence]
        lines += [""] * draw.choice([1, 1, 1, 2])
    return end.join(lines).encode()


def _write_rows(draw: random.Random, rows: list[Row], how: float, path: Path) -> None:
    if 0.3 <= how < 0.6:
        rows = mutate_rows(draw, rows)
    if 0.6 <= how < 0.75:
        found = mutate_tree(draw, rows)
        rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else rows
    _write_file(draw, rows or [{"text": "a"}], path.suffix.removeprefix("."), path)
    if how >= 0.75:
        path.write_bytes(mutate_bytes(draw, path.read_bytes()))


def _write_folder(draw: random.Random, texts: Sequence[str], place: Path, *, damaged: bool) -> Path:
    place.mkdir()
    for number, text in enumerate(texts):
        (place / f"{number:03}.{draw.choice(['txt', 'txt', 'md'])}").write_text(text, "utf-8")
    for name, raw in (("README.md", b"about"), (".hidden.txt", b"hidden"), ("a.png", b"\x89PNG\r\n\x1a\n")):
        if draw.random() < 0.3:
            (place / name).write_bytes(raw)
    for _ in range(draw.choice([1, 2, 3]) if damaged else 0):
        files = sorted(each for each in place.rglob("*") if each.is_file() and not each.is_symlink())
        if files and draw.random() < 0.5:
            _damage_folder(draw, draw.choice(files), mutate_bytes(draw, b"the film was good"))
        elif files:
            file = draw.choice(files)
            file.write_bytes(mutate_bytes(draw, file.read_bytes()))
        else:
            name = re.sub(r"[/\0]", "_", str(draw.choice(ODD_TEXTS)))[:60].encode("utf-8", "replace").decode()
            (place / f"{name}.txt").write_bytes(b"a text")
    return place


# --- judging ----------------------------------------------------------------------------------------------------


def _accounted(data: Any, book: Notebook) -> None:
    """Every row that was read is in one split or counted under the reason for which it was dropped."""
    import pyarrow.parquet as parquet

    told = book.files["data.json"]
    flow = {stage["stage"]: stage["rows"] for stage in told["flow"]}
    splits = {name: flow[name] for name in ("train", "validation", "test")}
    dropped = {name: -rows for name, rows in flow.items() if name.startswith("dropped")}
    read = sum(origin["rows"] for origin in told["sources"])
    require(flow["read"] == read, f"{read} rows in the sources, {flow['read']} in the flow")
    require(read == sum(splits.values()) + sum(dropped.values()), f"rows do not add up: {flow}")
    places = parquet.read_table(book.folder / "splits.parquet")["split"].to_pylist()
    require({name: places.count(name) for name in splits} == splits, "splits.parquet and data.json disagree")
    require(len(data.corpora["train"]) == splits["train"], "training rows were lost")


def _encoded(data: Any, book: Notebook, shop: Workshop) -> None:
    """Every split can be made tokens, and what a baseline answers can be measured, written and shown."""
    import numpy as np
    import pyarrow as pa

    from finesmith.tasks.corpus import Outcome as Answer

    corpora = {**data.corpora, "test": data.test.open(book)}
    for name, corpus in corpora.items():
        encoded = data.task.encode(corpus, shop.tokenizer, data.max_length)
        if data.task.name == NER:
            answer = Answer([list(tags) for tags in corpus.content.tags])
            right = data.task.measure(corpus, encoded, answer)
            perfect = right["token_accuracy"].value
            require(perfect == 1.0, f"{name}: the true tags have an accuracy of {perfect}")
        else:
            answer = Answer(None, np.full(len(corpus), -1.0), _targets(encoded, len(corpus)))
            data.task.measure(corpus, encoded, answer)
        for quote in (True, False):
            columns = data.task.columns(corpus, answer, quote=quote)
            require(all(len(column) == len(corpus) for column in columns.values()), f"{name}: columns of other lengths")
            pa.table(columns)


def _targets(encoded: Any, documents: int) -> Any:
    """Count the targets of each document, one at least."""
    import numpy as np

    asked = np.add.reduceat(np.append(encoded.rows.targets >= 0, False), encoded.rows.offsets[:-1])
    counted = np.bincount(
        encoded.detail.documents if hasattr(encoded.detail, "documents") else encoded.detail.text.documents,
        weights=asked,
        minlength=documents,
    )
    return np.maximum(counted, 1).astype(np.int64)


def _read_exactly(path: Path, task: str, encoding: str | None, separator: str | None) -> None:
    """What was read of a file is what another reader finds in it."""
    from finesmith import tasks
    from finesmith.tasks.corpus import Reading

    corpus = tasks.language_task(task).read([str(path)], Reading(encoding=encoding, separator=separator))
    if path.is_dir() or len(corpus.origins) != 1:
        return
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    codec = (corpus.origins[0].encoding or "utf-8").removesuffix(" with BOM")
    if corpus.origins[0].format == "conll":
        text = raw.decode(codec).lstrip("\ufeff")
        found = [word for row in range(len(corpus)) for word in corpus.content.words(row)]
        require(found == list(_words(text)), "other words than stand in the file")
    elif corpus.origins[0].format == "text":
        text = raw.decode(codec).lstrip("\ufeff")
        pieces = text.split(separator) if separator else [text]
        require(
            "".join("".join(corpus.texts).split()) == "".join("".join(pieces).split()),
            "other text than stands in the file",
        )


def _words(text: str) -> Sequence[str]:
    lines = [line.rstrip("\r") for line in text.split("\n" if "\n" in text else "\r")]
    tabbed = any("\t" in line for line in lines)
    found = []
    for line in lines:
        if not line.strip() or line.lstrip(" ").startswith(("-DOCSTART-", "# newdoc")):
            continue
        fields = line.split("\t") if tabbed else re.split(r"[ \t]+", line.strip(" "))
        if len(fields) > 1:
            found.append(fields[0])
    return found
