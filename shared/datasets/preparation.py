"""What preparations and generators have in common: numbers, folders, tables, and work in several processes."""

from __future__ import annotations

import codecs
import csv
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from io import StringIO
from itertools import islice, zip_longest
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..utils import DataError, cell_text, file_in_the_way, own_cores, write_json
from ..utils.text import first_few
from ..utils.values import OrNone, Whole, check_value

logger = logging.getLogger(__name__)

NEW_FOLDER = "Choose a new folder with --output_dir, or delete this one first."


def worker_count(workers: int | None) -> int:
    """How many files or cases are worked on at a time: the number given, or one for each core, 8 at most."""
    return min(own_cores(), 8) if workers is None else workers


def repeated(values: Iterable[Any]) -> list[Any]:
    """The values that occur more than once, in the order in which they first do."""
    return [value for value, count in Counter(values).items() if count > 1]


def resolve_folders(
    source: str | os.PathLike, output_dir: str | os.PathLike, option: str = "--data_dir"
) -> tuple[Path, Path]:
    """The full paths of the source that `option` names, which stays as it is, and of the output.

    Raises:
        DataError: when the output is inside of the source, or there is no source.
    """
    found, target = (Path(path).expanduser().resolve() for path in (source, output_dir))
    if not found.exists():
        raise DataError(f"{source}: there is no such file or folder. Check {option}.")
    if target.is_relative_to(found):
        raise DataError(f"{output_dir}: is inside of {option}, which stays as it is. Choose another --output_dir.")
    return found, target


def refuse(source: str | os.PathLike, found: Sequence[Any], message: str, /, **values: object) -> None:
    """Raise a `DataError` that begins with `source`, if anything is `found` that should not be there.

    In the message `{0}` stands for the first of it, `{few}` for the first five, `{count}` for their number.
    """
    if found:
        few = first_few([str(one) for one in found])
        raise DataError(f"{source}: {message.format(found[0], few=few, count=len(found), **values)}")


def refuse_other_content(folder: Path, strange: Sequence[str]) -> None:
    """Raise a `DataError` if an output folder is a file, or holds what is `strange` to it and not to be mixed with."""
    if file := file_in_the_way(folder):
        raise DataError(f"{file}: found a file, expected a folder. {NEW_FOLDER}")
    refuse(folder, strange, "already holds {few}, expected an empty folder. " + NEW_FOLDER)


class TableRow(dict[str, str]):
    """A row of a table, by its columns; `line` is that of the file in which it ends."""

    def __init__(self, cells: Iterable[tuple[str, str]], line: int) -> None:
        super().__init__(cells)
        self.line = line


def read_table(path: Path, remedy: str) -> tuple[list[str], Iterator[TableRow]]:
    """The columns of a table that the user gives, and its rows; missing cells are empty, blank lines are left out.

    In UTF-8, in UTF-16 with its byte order mark, or, with a warning, in cp1252, as Excel in western Europe writes it;
    with commas, semicolons, tabs or bars.

    Raises:
        DataError: when it is missing or no table; `remedy` says what to do.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such table. {remedy}")
    text = _table_text(path, remedy)

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            reader = csv.reader(StringIO(text, newline=""), delimiter=max(",;\t|", key=partial(_suits, text)))
            yield from ((reader.line_num, row) for row in reader if row)
        except csv.Error as e:
            raise DataError(f"{path}: not readable as a table ({e}). {remedy}") from e

    def named(header: Sequence[str], found: Iterator[tuple[int, list[str]]]) -> Iterator[TableRow]:
        for line, row in found:
            more = [cell for cell in row[len(header) :] if cell.strip()]
            what = "line {line} has more cells than the header, {0!r} is one. Quote cells that hold a separator."
            refuse(path, more, what, line=line)
            yield TableRow(zip_longest(header, map(cell_text, row[: len(header)]), fillvalue=""), line)

    found = rows()
    header = list(map(cell_text, next(found, (0, []))[1]))
    refuse(path, repeated(filter(None, header)), "has two columns called {0!r}. Rename one of them.")
    return header, named(header, found)


def _table_text(path: Path, remedy: str) -> str:
    data = path.read_bytes()
    encodings = ["utf-16"] if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else ["utf-8-sig", "cp1252"]
    if encodings == ["utf-16"] and len(data) % 2:
        raise DataError(f"{path}: half of its last character is missing, it is cut short. Copy it again.")
    for encoding in encodings:
        try:
            text = data.decode(encoding)
            break
        except UnicodeDecodeError as e:
            if encoding == encodings[-1]:
                raise DataError(f"{path}: not readable as text ({e}). Save the table in UTF-8. {remedy}") from e
    if "\0" in text:
        raise DataError(
            f"{path}: no text, or UTF-16 or UTF-32 without the mark that says so: it holds a zero byte. Save the table "
            f"in UTF-8. {remedy}"
        )
    if encoding == "cp1252":
        _tell_of_cp1252(path)
    return text


@cache
def _tell_of_cp1252(path: Path) -> None:
    """Once, however often the table is read."""
    logger.warning("%s: is not in UTF-8, read as cp1252. Are names with accents right?", path)


def _suits(text: str, delimiter: str) -> tuple[bool, bool, int]:
    """How well it separates the cells: several in the header, as many in the first row, many."""
    rows = filter(None, csv.reader(StringIO(text, newline=""), delimiter=delimiter))
    counts = [len(row) for row in islice(rows, 2)]
    return max(counts[:1], default=0) > 1, len(set(counts)) == 1, max(counts[:1], default=0)


def make_data_set(
    output_dir: str | os.PathLike,
    lists: Mapping[str, Mapping[str, Any]],
    files: Iterable[str],
    write: Callable[[Any], None],
    items: Sequence[Any],
    processes: int | None,
    unit: str,
) -> Path:
    """Write a synthetic data set, into a new folder or one that holds nothing but this very data set.

    `write`, a function of a module, is called with each of the `items` (one is a `unit` of the progress), in as many
    processes, by default one for each core. Then the datalists are written (`lists`, name → content), `dataset.json`,
    whose path is returned, as the last. Beside it the folder may hold these `files` alone; a folder among them stands
    for all that is in it.

    Raises:
        DataError: when the folder holds anything else, or the number of processes is not a whole one of 1 or above.
    """
    folder = Path(output_dir)
    own = {folder / name for name in ("dataset.json", *files)}
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and own.isdisjoint([path, *path.parents])]
    names = [path.relative_to(folder) for path in found]
    refuse_other_content(folder, [str(n) for n in names if not any(part.startswith(".") for part in n.parts)])
    path = folder / "dataset.json"
    if path.exists() and path.read_text(encoding="utf-8") != json.dumps(lists[path.name], indent=2) + "\n":
        raise DataError(f"{path}: already describes another data set, expected an empty folder. {NEW_FOLDER}")
    check_value("processes", processes, OrNone(Whole(1), "one for each core"))
    processes = min(processes or own_cores(), len(items))
    progress = partial(tqdm, total=len(items), desc=lists[path.name]["name"], unit=unit)
    if processes == 1:
        list(progress(map(write, items)))
    else:
        # Forking a process that has threads may deadlock; a spawned one starts clean.
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            list(progress(pool.map(write, items)))
    for name, content in lists.items():
        write_json(folder / name, content)
    return path
