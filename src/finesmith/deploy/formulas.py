"""Count the cells that a spreadsheet program would run as formulas. They are written as they are, and told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

# Programs also skip white space before the sign. A plain number such as -3 or +49 170 1234 is no formula.
FORMULA = r"^[\s]*[=@\t\r]|^\s*[+-].*[A-Za-z(!|]"


class Formulas:
    """Counts, while tables pass through, the texts that a spreadsheet would take for formulas."""

    def __init__(self) -> None:
        self.cells = 0

    def counted(self, tables: Iterable[Any]) -> Iterator[Any]:
        """Yield the tables as they are."""
        import pyarrow as pa
        import pyarrow.compute as pc

        for table in tables:
            texts = [c for c in table.columns if pa.types.is_string(c.type) or pa.types.is_large_string(c.type)]
            for column in [*texts, pa.array(table.column_names, pa.string())]:
                self.cells += pc.sum(pc.match_substring_regex(column, FORMULA)).as_py() or 0
            yield table

    def told(self) -> str | None:
        """Return what to say about them, or None where there are none."""
        if not self.cells:
            return None
        return (
            f"{self.cells:,} texts begin like formulas (=, +, -, @): they are written as they are, and a spreadsheet "
            "would run them; import such columns as text, or write .parquet or .jsonl"
        )
