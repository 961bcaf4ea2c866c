from __future__ import annotations

import codecs
import re
from pathlib import Path

import pytest

from shared.datasets.preparation import read_table, resolve_folders, worker_count
from shared.utils import DataError


def test_folders_and_workers(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert resolve_folders(tmp_path / "data/../data", tmp_path / "data2") == (tmp_path / "data", tmp_path / "data2")
    for output in ("data", "data/a/b"):
        with pytest.raises(DataError, match="is inside of --data_dir, which stays as it is"):
            resolve_folders(tmp_path / "data", tmp_path / output)
    with pytest.raises(DataError, match="there is no such file or folder"):
        resolve_folders(tmp_path / "none", tmp_path)
    assert worker_count(3) == 3
    assert 1 <= worker_count(None) <= 8


COLUMNS = ["file", "label, coarse", "scanner"]
ROWS = [
    {"file": "a;b.png", "label, coarse": "m,n", "scanner": "Köln"},
    {"file": "'c'.png", "label, coarse": 'a "quoted" one', "scanner": ""},
]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "cp1252"])
def test_a_table_in_any_form(
    encoding: str, delimiter: str, newline: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quoted = [['"a;b.png"', '"m,n"', "Köln"], ["'c'.png", '"a ""quoted"" one"']]  # the last cell is missing
    text = newline.join(delimiter.join(cells) for cells in [["file", '"label, coarse"', "scanner"], *quoted, []])
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    (tmp_path / "t.csv").write_bytes(mark + text.encode(encoding))
    header, rows = read_table(tmp_path / "t.csv", "")
    assert (header, list(rows)) == (COLUMNS, ROWS)
    assert ("read as cp1252" in caplog.text) == (encoding == "cp1252")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a;b\n1,5;2,5\n", {"a": "1,5", "b": "2,5"}),  # decimal commas
        ("a;b, c, d\n1;2\n", {"a": "1", "b, c, d": "2"}),
        ("a,b,c\n1\n", {"a": "1", "b": "", "c": ""}),
        ("a\n1\n", {"a": "1"}),
        ("a,b\n\n1,2,,\n", {"a": "1", "b": "2"}),
        ("\n\r\n a,b;c\n1;2\n", {" a,b": "1", "c": "2"}),  # blank lines before it
        ("a,b\n'=1+1,'-\n", {"a": "=1+1", "b": "-"}),  # as written for a spreadsheet
    ],
)
def test_what_separates_the_cells(text: str, expected: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert list(read_table(tmp_path / "t.csv", "")[1]) == [expected]


def test_a_row_knows_its_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('\na,b\n\n1,2\n\n"3\n4",5\n6,7\n')
    assert [row.line for row in read_table(tmp_path / "t.csv", "")[1]] == [4, 7, 8]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such table. Copy it."),
        (b"a,b\n1,\0\n", "no text, or UTF-16 or UTF-32 without the mark that says so: it holds a zero byte. Save"),
        ("a,b\n".encode("utf-16-le"), "no text, or UTF-16"),
        (b"a,b\n\x81,1\n", "not readable as text ('charmap' codec can't decode"),
        (codecs.BOM_UTF16_LE + b"abc", "half of its last character is missing, it is cut short. Copy it again."),
        (codecs.BOM_UTF16_LE + b"\0\xd8", "not readable as text ('utf-16-le' codec can't decode"),
        (b"a,b,a\n1,2,3\n", "has two columns called 'a'. Rename one of them."),
        (b'a,b\n"' + 200_000 * b"1", "not readable as a table (field larger than field limit (131072)). Copy it."),
        (b"a,b\n\n1,2,3\n", "line 3 has more cells than the header, '3' is one."),
    ],
)
def test_what_is_no_table(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"t\.csv: " + re.escape(message)):
        list(read_table(tmp_path / "t.csv", "Copy it.")[1])
