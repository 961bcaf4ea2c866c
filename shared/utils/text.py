"""Lists and tables as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def first_few(names: Sequence[str], count: int = 5) -> str:
    """The first names of a list, and dots where there are more: for messages."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as lines of aligned columns under a header; numbers to the right."""
    columns = list(rows[0]) if rows else []
    width = {c: max(len(str(c)), *(len(str(row[c])) for row in rows)) for c in columns}
    right = {c for c in columns if isinstance(rows[0][c], int)}
    lines = [{c: c for c in columns}, *rows]
    cells = [[str(r[c]).rjust(width[c]) if c in right else str(r[c]).ljust(width[c]) for c in columns] for r in lines]
    return "\n".join("  ".join(line).rstrip() for line in cells)
