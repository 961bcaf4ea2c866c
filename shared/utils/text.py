"""Lists and tables as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def first_few(names: Sequence[str], count: int = 5) -> str:
    """The first names of a list, and dots where there are more: for messages."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def differences(name: str, before: Any, now: Any) -> Iterator[tuple[str, str, str]]:
    """What differs between two values, for messages: its name, and both as short texts; of tables entry by entry.

    Example::

        list(differences("a", {"x": 1, "y": 2}, {"x": 1, "y": 3}))  # [("a.y", "2", "3")]
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*before, *now)):
            yield from differences(f"{name}.{key}", before.get(key), now.get(key))
    elif before != now:
        short = (textwrap.shorten(repr(value), 100, placeholder=" ...") for value in (before, now))
        yield name, *short


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as lines of aligned columns under a header; numbers to the right."""
    columns = list(rows[0]) if rows else []
    width = {c: max(len(str(c)), *(len(str(row[c])) for row in rows)) for c in columns}
    right = {c for c in columns if isinstance(rows[0][c], int)}
    lines = [{c: c for c in columns}, *rows]
    cells = [[str(r[c]).rjust(width[c]) if c in right else str(r[c]).ljust(width[c]) for c in columns] for r in lines]
    return "\n".join("  ".join(line).rstrip() for line in cells)
