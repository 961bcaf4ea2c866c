"""What a setting or an option may be: checked, and said in the same words in every message and help."""

from __future__ import annotations

import ast
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .errors import DataError

LONGEST = 200  # bytes of a name: file systems allow 255, and endings such as _seg.nii.gz are added
LONGEST_SHOWN = 300  # characters of a wrong value


class Kind(Protocol):
    """The values that a setting may have."""

    @property
    def expected(self) -> str:
        """Them in words, to stand behind "expected"."""
        ...

    def accepts(self, value: Any) -> bool: ...


@dataclass(frozen=True)
class Whole:
    """A whole number from `least` to `most`, a multiple of `step`. True is none."""

    least: int | None = None
    most: int | None = None
    step: int = 1

    @property
    def expected(self) -> str:
        return (f"a multiple of {self.step}" if self.step > 1 else "a whole number") + _limits(self.least, self.most)

    def accepts(self, value: Any) -> bool:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and value % self.step == 0 and _within(value, self.least, self.most)


@dataclass(frozen=True)
class Number:
    """A finite number from `least` to `most`, or above `above`."""

    least: float | None = None
    most: float | None = None
    above: float | None = None

    @property
    def expected(self) -> str:
        above = "" if self.above is None else f" above {self.above:g}"
        if above and self.most is not None:
            return f"a number{above}, {self.most:g} at most"
        return "a number" + (above or _limits(self.least, self.most))

    def accepts(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return _within(value, self.least, self.most) and (self.above is None or value > self.above)


@dataclass(frozen=True)
class Flag:
    """True or false, also as text: what `flag` takes. Or another word."""

    other: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        return Choice(("true", "false", *self.other)).expected

    def accepts(self, value: Any) -> bool:
        return str(value).lower() in ("true", "false") or value in self.other


@dataclass(frozen=True)
class Text:
    """Text that is not empty, unless `empty`."""

    expected: str = "text"
    empty: bool = False

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) and (self.empty or bool(value.strip()))


@dataclass(frozen=True)
class Name:
    """What a file can be called, with room for an ending, or its path, which may have `folders`."""

    words: str = "a name"
    folders: bool = True

    @property
    def expected(self) -> str:
        return f"{self.words}, without line breaks and other control characters, of {LONGEST} bytes at most"

    def accepts(self, value: Any) -> bool:
        if not isinstance(value, str) or any(unicodedata.category(c) == "Cc" for c in value):
            return False
        parts = value.split("/")
        if len(parts) > 1 and not self.folders:
            return False
        lengths = [len(part.encode(errors="surrogatepass")) for part in parts]
        return max(lengths) <= LONGEST and bool(value.strip("./ "))


@dataclass(frozen=True)
class Choice:
    """One of some words."""

    words: tuple[str, ...]

    @property
    def expected(self) -> str:
        return " or ".join(filter(None, (", ".join(self.words[:-1]), self.words[-1])))

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.words


@dataclass(frozen=True)
class Several:
    """A list, each item of the same kind: `count` of them, or any number but none; no item twice if `distinct`."""

    item: Kind
    count: int | None = None
    distinct: bool = False
    empty: bool = False

    @property
    def expected(self) -> str:
        each = f"each {self.item.expected}" + (", none twice" if self.distinct else "")
        return f"a list of {self.count}, {each}" if self.count else f"a list, {each}"

    def accepts(self, value: Any) -> bool:
        if isinstance(value, str) or not isinstance(value, Sequence) or not all(map(self.item.accepts, value)):
            return False
        if self.distinct and any(item in value[:i] for i, item in enumerate(value)):
            return False
        return len(value) == self.count if self.count else bool(value) or self.empty


@dataclass(frozen=True)
class Table:
    """Names, and for each a value of the same kind; `keys` are the only names if given."""

    item: Kind
    words: str
    keys: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        return self.words

    def accepts(self, value: Any) -> bool:
        if not isinstance(value, Mapping) or not value or (self.keys and not set(value) <= set(self.keys)):
            return False
        return all(isinstance(key, str) and self.item.accepts(item) for key, item in value.items())


@dataclass(frozen=True)
class OrNone:
    """What `kind` accepts, or None, which means what `none` says."""

    kind: Kind
    none: str = "none"

    @property
    def expected(self) -> str:
        return f"{self.kind.expected}, or None ({self.none})"

    def accepts(self, value: Any) -> bool:
        return value is None or self.kind.accepts(value)


MPP = Number(0.05, 4)
"""µm a pixel: between 200x and 2.5x. What lies outside of it was meant for a printer, or in another unit."""


def check_value(name: str, value: Any, kind: Kind) -> None:
    """Raise a `DataError` that gives the setting, the value and what is expected, unless `kind` accepts the value."""
    if not kind.accepts(value):
        found = repr(value)
        found = found if len(found) <= LONGEST_SHOWN else f"{found[:LONGEST_SHOWN]}... ({len(found)} characters)"
        raise DataError(f"{name} is {found}, expected {kind.expected}.")


def read_value(name: str, text: str, kind: Kind) -> Any:
    """The value that text on a command line stands for: as it is where the kind takes text, else as Python reads it.

    A list may be written without its brackets: `a,b`.

    Raises:
        DataError: where it is none of the kind.
    """
    inner = kind.kind if isinstance(kind, OrNone) else kind
    if inner is not kind and text == "None":
        return None
    if isinstance(inner, Flag) and inner.accepts(text):
        return text.lower() == "true"
    if isinstance(inner, Several) and not text.startswith(("[", "(")):
        parts = [part.strip() for part in text.split(",") if part.strip()]
        value = [part if isinstance(inner.item, Text | Choice) else _literal(part) for part in parts]
    else:
        value = text if isinstance(inner, Text | Choice) else _literal(text)
    check_value(name, value, kind)
    return value


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _limits(least: float | None, most: float | None) -> str:
    if most is None:
        return "" if least is None else f" of {least} or above"
    return f" of {most} or below" if least is None else f" from {least} to {most}"


def _within(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)
