"""Plant faults of every kind in real film reviews, audit them, and print how many are found.

    python bench/audit_planted.py [--number 500] [--rows 100000]

Needs the shared data folder: `FINESMITH_SHARED`, or `../shared` beside the repository.

Recall: planted rows flagged under their kind. Precision: flagged rows that were planted, among those flagged. Apart are
rows that the audit flags in the untouched corpus too, and their copies (the corpus' own faults, "own"), and, for
near-duplicates and leaks, rows that share three quarters of their words in order with another (held-out) row by
`difflib`, which knows nothing of the audit's measure ("verified").
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np

from finesmith.data.audit import audit
from finesmith.data.near_duplicates import Clusters, cluster, normalise, words
from finesmith.types import Examples, Finding

# Without names, places, organisations, titles, dates and nationalities, which rules find in part only.
STRUCTURED = {
    "CREDIT_CARD", "PHONE_NUMBER", "EMAIL_ADDRESS", "IBAN_CODE", "US_SSN", "IP_ADDRESS", "STREET_ADDRESS", "ZIP_CODE",
    "DOMAIN_NAME", "US_DRIVER_LICENSE",
}  # fmt: skip


@dataclass
class Planted:
    """Rows with faults: `truth[kind]` are the ids to be found, `group[id]` the variant, `origin[id]` the row copied."""

    texts: list[str]
    labels: list[str | None]
    splits: list[str]
    truth: dict[str, set[int]] = field(default_factory=dict)
    group: dict[int, str] = field(default_factory=dict)
    origin: dict[int, int] = field(default_factory=dict)

    def add(self, text: str, label: str | None, kind: str, group: str, origin: int | None = None) -> None:
        """Append a training row and note what is wrong with it."""
        self.texts.append(text)
        self.labels.append(label)
        self.splits.append("train")
        self.note(len(self.texts) - 1, kind, group)
        if origin is not None:
            self.origin[len(self.texts) - 1] = origin

    def note(self, row: int, kind: str, group: str) -> None:
        """Write down that `row` is planted."""
        self.truth.setdefault(kind, set()).add(row)
        self.group[row] = group

    def examples(self) -> Examples:
        """Return the rows as Examples."""
        return Examples(np.arange(len(self.texts)), self.texts, None, self.labels)


def film_reviews(shared: Path) -> Planted:
    """Read the corpus with its own splits."""
    clean = Planted([], [], [])
    for split in ("train", "validation", "test"):
        for line in (shared / "data/film_reviews" / f"{split}.jsonl").read_text("utf-8").splitlines():
            record = json.loads(line)
            clean.texts.append(record["text"])
            clean.labels.append(record["label"])
            clean.splits.append(split)
    return clean


def edit(text: str, vocabulary: Sequence[str], chance: random.Random) -> tuple[str, str]:
    """Return the text with one small realistic edit, and its name."""
    pieces = text.split()
    long = [place for place, piece in enumerate(pieces) if len(piece) > 3 and piece.isalpha()]
    name = chance.choice(["changed", "dropped", "added", "swapped", "typo", "punctuation"])
    place = chance.choice(long) if long else 0
    word = pieces[place]
    if name == "changed":
        pieces[place] = chance.choice(vocabulary)
    elif name == "dropped":
        del pieces[place]
    elif name == "added":
        pieces.insert(place, chance.choice(vocabulary))
    elif name == "swapped":
        other = place - 1 if place else min(1, len(pieces) - 1)
        pieces[place], pieces[other] = pieces[other], pieces[place]
    elif name == "typo":
        spot = chance.randrange(1, max(len(word) - 1, 2))
        middle = chance.choice([word[spot + 1 : spot + 2] + word[spot], "", word[spot] * 2, "x"])
        pieces[place] = word[:spot] + middle + word[spot + (2 if len(middle) == 2 and middle[0] != word[spot] else 1) :]
    else:
        changed = re.sub(r"\s+([.,!?])", r"\1", " ".join(pieces)).replace(" -- ", " - ")
        return changed.rstrip(" .") + chance.choice(["", "!", "...", " !!"]), name
    return " ".join(pieces), name


def near_copy(text: str, vocabulary: Sequence[str], chance: random.Random) -> tuple[str, str]:
    """Return an edited copy that is not an exact duplicate."""
    while True:
        copy, name = edit(text, vocabulary, chance)
        if normalise(copy) != normalise(text):
            return copy, name


def mojibake(text: str, chance: random.Random) -> tuple[str, str]:
    """Return the text, with typographic quotes, dashes and accents, as UTF-8 read in another encoding."""
    fancy = text.replace("'", "’").replace(" -- ", " — ")
    if fancy.isascii():
        fancy = fancy.replace("e", "é", 1) if "e" in fancy and chance.random() < 0.5 else f"“{fancy}”"
    encoding = chance.choice(["latin-1", "cp1252"])
    try:
        return fancy.encode("utf-8").decode(encoding), encoding
    except UnicodeDecodeError:
        return fancy.encode("utf-8").decode("latin-1"), "latin-1"


HTML: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("paragraph", lambda text: f"<p>{text}</p>"),
    ("break", lambda text: text.replace(" , ", " ,<br />", 1) if " , " in text else text + "<br>"),
    ("bold", lambda text: re.sub(r"(\w{4,})", r"<b>\1</b>", text, count=1)),
    ("link", lambda text: f'<a href="/review/17">{text}</a>'),
    ("entity", lambda text: text.replace("'", "&#39;") if "'" in text else text + " &amp; more"),
    ("space", lambda text: text.replace(" ", "&nbsp;", 2)),
    ("span", lambda text: f'<span class="review">{text}</span>'),
)


def personal_texts(shared: Path) -> tuple[list[str], list[str]]:
    """Return texts with structured personal data, and texts with names, places and organisations only."""
    items = json.loads((shared / "data/pii_presidio/synth_dataset_v2.json").read_text("utf-8"))
    kinds = [{span["entity_type"] for span in item["spans"]} for item in items]
    structured = {item["full_text"]: 0 for item, inside in zip(items, kinds, strict=True) if inside & STRUCTURED}
    names = {
        item["full_text"]: 0
        for item, inside in zip(items, kinds, strict=True)
        if "PERSON" in inside and not inside & STRUCTURED
    }
    return list(structured), list(names)


def spanish_sentences(shared: Path) -> list[str]:
    """Return different Spanish sentences of 5 to 40 words."""
    found: dict[str, int] = {}
    for line in (shared / "data/spanish_fakenews/train.jsonl").read_text("utf-8").splitlines():
        for sentence in re.split(r"(?<=[.!?])\s+|\n+", json.loads(line)["text"]):
            if 5 <= len(sentence.split()) <= 40 and not sentence.isupper():
                found[sentence.strip()] = 0
    return list(found)


def plant(shared: Path, number: int, seed: int = 0) -> Planted:
    """Plant `number` faults of each kind in film_reviews: in place, or as copies appended to train."""
    chance = random.Random(seed)
    rows = film_reviews(shared)
    vocabulary = [word for text in rows.texts for word in text.split() if word.isalpha() and len(word) > 3]
    train = [
        row for row, text in enumerate(rows.texts) if rows.splits[row] == "train" and len(words(normalise(text))) >= 5
    ]
    test = [
        row for row, text in enumerate(rows.texts) if rows.splits[row] == "test" and len(words(normalise(text))) >= 5
    ]
    chance.shuffle(train)
    chance.shuffle(test)
    take = (train[start : start + number] for start in range(0, len(train), number))
    for row in next(take):
        rows.texts[row], group = mojibake(rows.texts[row], chance)
        rows.note(row, "broken_encoding", group)
    for row in next(take):
        group, mark_up = chance.choice(HTML)
        rows.texts[row] = mark_up(rows.texts[row])
        rows.note(row, "html", group)
    for row in next(take):
        rows.labels[row] = chance.choice([None, "", "  "])
        rows.note(row, "missing_labels", "none" if rows.labels[row] is None else "blank")
    for row in next(take):
        group, copy = chance.choice(
            [("same", str), ("case", str.title), ("space", lambda text: f" {text.replace(' ', '  ')}")]
        )
        rows.add(copy(rows.texts[row]), rows.labels[row], "exact_duplicates", group, row)
    for row in next(take):
        copy, group = near_copy(rows.texts[row], vocabulary, chance)
        rows.add(copy, rows.labels[row], "near_duplicates", group, row)
    for row in next(take):
        flipped = "negative" if rows.labels[row] == "positive" else "positive"
        rows.note(row, "conflicting_labels", "original")
        rows.add(rows.texts[row], flipped, "conflicting_labels", "flipped", row)
    half = max(len(test) // 2, 1)
    for place in range(number):
        row = test[place % half]
        rows.add(rows.texts[row], rows.labels[row], "leakage", "exact", row)
    for place in range(number):
        row = test[half + place % half]
        copy, group = near_copy(rows.texts[row], vocabulary, chance)
        rows.add(copy, rows.labels[row], "near_leakage", group, row)
    for _ in range(number):
        group, text = chance.choice(
            [("empty", ""), ("spaces", " \t  "), ("signs", "..."), ("signs", " -- !?"), ("signs", "_")]
        )
        rows.add(text, chance.choice(["positive", "negative"]), "empty", group)
    for text in chance.sample(spanish_sentences(shared), number):
        rows.add(
            text,
            chance.choice(["positive", "negative"]),
            "mixed_language",
            "under 40 characters" if len(text) < 40 else "longer",
        )
    structured, names = personal_texts(shared)
    for text in chance.sample(structured, min(number, len(structured))):
        rows.add(text, chance.choice(["positive", "negative"]), "personal_data", "structured")
    for text in chance.sample(names, min(number, len(names))):
        rows.add(text, chance.choice(["positive", "negative"]), "personal names", "names")
    return rows


def look(rows: Planted, clusters: Clusters | None = None) -> dict[str, Finding]:
    """Audit the rows with their given splits."""
    clusters = clusters or cluster(rows.texts)
    found = audit(rows.examples(), clusters=lambda: clusters, kind="category", splits=rows.splits)
    return {one.kind: one for one in found}


def verified(rows: Planted, row: int, candidates: Sequence[int]) -> bool:
    """Tell whether difflib finds another row with three quarters of the words, in order, or all of them, in any."""
    mine = re.findall(r"\w+", rows.texts[row].lower())
    for other in candidates:
        theirs = re.findall(r"\w+", rows.texts[other].lower())
        if sorted(mine) == sorted(theirs) or SequenceMatcher(None, mine, theirs, autojunk=False).ratio() >= 0.75:
            return True
    return False


def measure(rows: Planted, own: dict[str, Finding]) -> dict[str, dict[str, Any]]:
    """Compare what the audit of `rows` flags with what was planted; `own` are the findings in the untouched corpus."""
    clusters = cluster(rows.texts)
    found = look(rows, clusters)
    members: dict[int, list[int]] = {}
    for row, first in enumerate(clusters.first.tolist()):
        members.setdefault(first, []).append(row)
    table: dict[str, dict[str, Any]] = {}
    for kind, truth in rows.truth.items():
        name = "personal_data" if kind == "personal names" else kind
        flagged = set(found[name].ids) if name in found else set()
        others = flagged - truth
        own_ids = set(own[name].ids) if name in own else set()
        own_faults = {row for row in others if rows.origin.get(row, row) in own_ids}
        others -= own_faults
        checked: set[int] = set()
        if kind in {"near_duplicates", "near_leakage"}:
            for row in others:
                family = [one for one in members[int(clusters.first[row])] if one != row]
                if kind == "near_leakage":
                    family = [one for one in family if rows.splits[one] != "train"]
                if verified(rows, row, family):
                    checked.add(row)
        if name == "personal_data":
            others -= rows.truth["personal_data"] | rows.truth["personal names"]
        others -= checked
        # An edit of punctuation or case alone leaves an exact copy, which the audit names as such.
        caught = flagged | set(found["leakage"].ids) if kind == "near_leakage" and "leakage" in found else flagged
        hit = truth & caught
        by_group: dict[str, list[int]] = {}
        for row in truth:
            by_group.setdefault(rows.group[row], []).append(row in caught)
        table[kind] = {
            "planted": len(truth),
            "found": len(hit),
            "recall": len(hit) / len(truth),
            "precision": None
            if kind == "personal names"
            else (len(hit) + len(checked)) / max(len(hit) + len(checked) + len(others), 1),
            "own": len(own_faults),
            "verified": len(checked),
            "false": sorted(others),
            "missed": sorted(truth - caught),
            "groups": {group: [sum(hits), len(hits)] for group, hits in sorted(by_group.items())},
        }
    return table


def many(shared: Path, number: int, seed: int = 0) -> Planted:
    """Return `number` different rows of about 20 words: halves of film reviews joined anew."""
    chance = random.Random(seed)
    corpus = film_reviews(shared)
    halves = [text.split() for text in corpus.texts]
    texts = []
    for _ in range(number):
        one, two = chance.choice(halves), chance.choice(halves)
        texts.append(" ".join([*one[: len(one) // 2], *two[len(two) // 2 :]]))
    return Planted(texts, [chance.choice(["positive", "negative"]) for _ in texts], ["train"] * number)


def main() -> None:
    """Print the table, the time, and one line of JSON."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--number", type=int, default=500)
    options.add_argument("--rows", type=int, default=100_000)
    options.add_argument("--show", action="store_true", help="print what was missed and what was flagged in error")
    chosen = options.parse_args()
    shared = Path(os.environ.get("FINESMITH_SHARED", Path(__file__).resolve().parent.parent.parent / "shared"))
    rows = plant(shared, chosen.number)
    table = measure(rows, look(film_reviews(shared)))
    print(f"{'kind':20}{'planted':>8}{'found':>8}{'recall':>8}{'precision':>10}{'own':>6}{'verified':>9}{'false':>7}")
    for kind, line in table.items():
        precision = "" if line["precision"] is None else f"{line['precision']:.3f}"
        print(
            f"{kind:20}{line['planted']:8}{line['found']:8}{line['recall']:8.3f}{precision:>10}"
            f"{line['own']:6}{line['verified']:9}{len(line['false']):7}"
        )
        if len(line["groups"]) > 1:
            print("    " + ", ".join(f"{group} {hits}/{size}" for group, (hits, size) in line["groups"].items()))
        if chosen.show:
            for name in ("missed", "false"):
                for row in line[name][:12]:
                    print(f"    {name}: {rows.texts[row][:140]!r}")
    large = many(shared, chosen.rows)
    start, start_cpu = time.perf_counter(), time.process_time()
    clusters = cluster(large.texts)
    clustered = time.perf_counter() - start
    audit(large.examples(), clusters=lambda: clusters, kind="category", splits=None)
    seconds = {"cluster": clustered, "all": time.perf_counter() - start, "processor": time.process_time() - start_cpu}
    print(f"{chosen.rows:,} rows of about 20 words: clusters {clustered:.1f} s, with the audit {seconds['all']:.1f} s")
    figures = {
        kind: {name: len(value) if isinstance(value, list) else value for name, value in line.items()}
        for kind, line in table.items()
    }
    print(json.dumps({"planted": figures, "rows": chosen.rows, "seconds": seconds}))


if __name__ == "__main__":
    main()
