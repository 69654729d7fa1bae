"""Load a data set of the Hugging Face hub by its id, without running code from it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.data.folders import format_of
from finesmith.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_ID = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?(#(?P<split>\w+))?"
)


@dataclass(frozen=True, slots=True)
class HubId:
    """The parts of `org/name[:config][@revision][#split]`."""

    name: str
    config: str | None
    revision: str | None
    split: str | None


def is_hub_id(source: str) -> bool:
    """Say whether a source is a hub id: of its form, and neither a path here nor in a folder that is here."""
    match = _ID.fullmatch(source)
    if match is None or Path(source).exists():
        return False
    if match["config"] or match["revision"] or match["split"]:
        return True
    return format_of(Path(source)) is None and not Path(source).parent.is_dir()


def parse(source: str) -> HubId:
    """Return the parts of a hub id.

    Raises:
        DataError: not of the form `org/name[:config][@revision][#split]`.
    """
    match = _ID.fullmatch(source)
    if match is None:
        raise DataError(f"{source[:80]!r} is not a hub id; expected org/name[:config][@revision][#split]")
    return HubId(match["name"], match["config"], match["revision"], match["split"])


def load(source: str) -> tuple[pa.Table, str]:
    """Return a hub data set's split as a table, and the SHA-256 of its rows.

    Raises:
        DataError: `datasets` is missing, the hub cannot be reached, no such data set, or the split is not named.
    """
    wanted = parse(source)
    try:
        import datasets
    except ImportError:
        raise DataError(f"{source}: reading from the hub needs datasets; run: pip install 'finesmith[hub]'") from None
    try:
        found: Any = datasets.load_dataset(wanted.name, wanted.config, revision=wanted.revision, split=wanted.split)
    except Exception as error:
        raise DataError(_refusal(source, wanted, error)) from None
    if isinstance(found, dict):
        if len(found) != 1:
            shown = ", ".join(f"--set data.{name}={source}#{name}" for name in found)[:240]
            raise DataError(f"{source} has the splits {', '.join(found)[:80]}; name the ones to use, as in {shown}")
        found = next(iter(found.values()))
    table = found.with_format("arrow")[:]
    if table.num_rows == 0:
        raise DataError(f"{source} holds no rows; its columns are {', '.join(table.column_names)[:80]}")
    return table, _digest(table)


def _refusal(source: str, wanted: HubId, error: Exception) -> str:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    kind = type(error).__name__
    if kind == "DatasetNotFoundError":
        return f"{source}: no file of that name here, and no data set {wanted.name!r} that you may read on the hub"
    if isinstance(error, ConnectionError) or "connect" in said.lower() or "offline" in kind.lower():
        return (
            f"{source}: no file of that name here, and the hub cannot be reached ({said}); "
            "connect, or name a file on this machine"
        )
    return f"{source}: the hub data set cannot be loaded ({kind}: {said})"


def _digest(table: pa.Table) -> str:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    whole = table.replace_schema_metadata(None).combine_chunks()
    with pa.ipc.new_stream(sink, whole.schema) as writer:
        writer.write_table(whole)
    return hashlib.sha256(sink.getvalue()).hexdigest()
