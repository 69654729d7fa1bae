"""What tasks on raw text share: how documents are read, joined and counted, and what is known of a model of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.data.documents import BLANK_LINE, Documents, documents_of, read_documents
from finesmith.errors import DataError
from finesmith.tasks.corpus import Corpus, Outcome, Reading, columns_of

if TYPE_CHECKING:
    from finesmith.data.sources import Origin
    from finesmith.evaluate.measurement import Measurement
    from finesmith.tasks.language import Floats, Ints

TABLES = frozenset({".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".xlsx"})
TEXT_COLUMNS = ("text", "content", "document", "body")
# Raw text lacks labels, and its rows have no usual length.
AUDITS = frozenset(
    {
        "empty", "leakage", "near_leakage", "exact_duplicates", "near_duplicates", "broken_encoding", "html",
        "personal_data", "mixed_language", "lexical_diversity",
    }
)  # fmt: skip
# Longer sequences cost memory before they teach much; data.max_length says otherwise.
USUAL_LENGTH = 512


def overlap_of(state: Mapping[str, Any]) -> int:
    """Return the overlap that a saved task says.

    Raises ValueError when it is none.
    """
    overlap = state["overlap"]
    if type(overlap) is not int or overlap < 0:
        raise ValueError(overlap)
    return overlap


def read(sources: Sequence[str], reading: Reading) -> Corpus:
    """Read text files and folders of them, or a column of tables, a document a row."""
    tabled = [_is_table(source) for source in sources]
    if any(tabled) and not all(tabled):
        raise DataError(
            f"{sources[tabled.index(True)]} is a table and {sources[tabled.index(False)]} is not; expected all sources "
            "of a split in one form"
        )
    return _read_table(sources, reading) if any(tabled) else _read_files(sources, reading)


def corpus(documents: Documents, origins: Sequence[Origin], columns: dict[str, str], notes: Sequence[str]) -> Corpus:
    """Return documents as rows."""
    return Corpus(documents.texts, None, None, documents.where, origins, columns, notes, documents)


def join(parts: Sequence[Corpus]) -> Corpus:
    """Lay documents end to end."""
    documents = Documents(
        tuple(text for part in parts for text in part.content.texts),
        tuple(place for part in parts for place in part.content.where),
    )
    origins = [origin for part in parts for origin in part.origins]
    return corpus(documents, origins, dict(columns_of(parts)), [note for part in parts for note in part.notes])


def take(whole: Corpus, positions: Sequence[int] | Ints) -> Corpus:
    """Return the documents at `positions`."""
    return corpus(whole.content.take(positions), whole.origins, dict(whole.columns), whole.notes)


def of_texts(texts: Sequence[str], where: Sequence[str]) -> Corpus:
    """Take texts, a document each."""
    for text, place in zip(texts, where, strict=True):
        if not text.strip():
            raise DataError(f"{place}: the text is empty; expected at least one word")
    return corpus(documents_of(texts, where), (), {}, ())


def by_document(values: Floats, documents: Ints, count: int) -> Floats:
    """Return the sum of the values [N] of the sequences of each document, [D]."""
    import numpy as np

    return np.asarray(np.bincount(documents, weights=values, minlength=count), np.float64)


def measure_bits(whole: Corpus, log_probabilities: Floats) -> Measurement:
    """Return bits per byte, each document's log probability [D] over its bytes."""
    import numpy as np

    from finesmith.evaluate.language_scores import bits_per_byte

    return bits_per_byte(np.minimum(log_probabilities, 0.0), whole.content.bytes())


def measure_perplexity(outcome: Outcome) -> Measurement:
    """Return perplexity a target."""
    import numpy as np

    from finesmith.evaluate.language_scores import perplexity

    assert outcome.log_probabilities is not None
    assert outcome.targets is not None
    return perplexity(np.minimum(outcome.log_probabilities, 0.0), np.maximum(outcome.targets, 1))


def summary(whole: Corpus) -> dict[str, Any]:
    """Count characters and words."""
    words = sum(len(text.split()) for text in whole.texts)
    return {"summary": {"documents": len(whole), "words": words, "characters": sum(map(len, whole.texts))}}


def _is_table(source: str) -> bool:
    path = Path(source)
    packed = path.suffix.lower() == ".gz"
    return (Path(path.stem) if packed else path).suffix.lower() in TABLES or not path.exists()


def _read_files(sources: Sequence[str], reading: Reading) -> Corpus:
    import hashlib

    from finesmith.data.sources import Origin

    if reading.text is not None:
        raise DataError(
            f"{sources[0]} is plain text and has no columns, but data.text is {reading.text[:80]!r}; leave it out"
        )
    parts = []
    for source in sources:
        # A folder is of documents; a file alone holds many, as a rule with blank lines between them.
        separator = reading.separator or (None if Path(source).is_dir() else BLANK_LINE)
        documents, notes = read_documents([source], separator=separator, encoding=reading.encoding)
        digest = hashlib.sha256("\0".join(documents.texts).encode("utf-8", "surrogatepass")).hexdigest()
        told = (*notes, f"{documents.blank} blank documents left out") if documents.blank else notes
        origin = Origin(source, "text", ", ".join(documents.encodings), len(documents), 0, digest, told)
        parts.append(corpus(documents, [origin], {}, ()))
    return parts[0] if len(parts) == 1 else join(parts)


def _read_table(sources: Sequence[str], reading: Reading) -> Corpus:
    from dataclasses import replace

    from finesmith.data.sources import read as read_sources

    if reading.separator is not None:
        raise DataError(
            f"{sources[0]} is a table, a document a row, but data.document_separator is {reading.separator[:80]!r}; "
            "leave it out"
        )
    source = read_sources(sources, encoding=reading.encoding)
    names = source.table.column_names
    text = reading.text or next((name for name in TEXT_COLUMNS if name in names), None)
    if text is None or text not in names:
        listed = ", ".join(names)[:300]
        raise DataError(
            f"{source.origins[0].name} has no column {text[:80]!r}; its columns are {listed}: name the right one with "
            "--set data.text=COLUMN (predict and evaluate: --text)"
            if text
            else f"{source.origins[0].name} has no column that looks like text; its columns are {listed}: name it with "
            "--set data.text=COLUMN"
        )
    documents = documents_of(source.table.column(text).to_pylist(), source.places())
    origins = list(source.origins)
    if documents.blank:
        # Rows are counted as they come into the flow, so that it adds up.
        note = f"{documents.blank} rows without text left out"
        origins[0] = replace(origins[0], rows=origins[0].rows - documents.blank, notes=(*origins[0].notes, note))
    return corpus(documents, origins, {"text": text}, ())
