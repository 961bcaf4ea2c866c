"""A command line made of a function's signature: read, checked and explained before the function runs.

`Annotated[int, Whole(1)]` says what an option may be; a bare `int`, `float`, `bool` or `str` is a kind by itself, and
where `None` is allowed, it stands for the option not being given. What has no default may be given by its place, and so
may what stands before a `/` and what `*names` collects; all else only by its name, `--name value`.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import logging
import re
import sys
import textwrap
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from shared.utils import DataError, show_errors_briefly
from shared.utils.values import Flag, Kind, Number, Text, Whole, read_value

Seed = Annotated[int, Whole(0, 2**32 - 1)]
AtATime = Annotated[int, Whole(1)] | None

Function = Callable[..., None]
Commands = Mapping[str, Any]  # name → function, or more of the same


@dataclass(frozen=True)
class Option:
    """A parameter of a function, as people write it."""

    parameter: inspect.Parameter
    kind: Kind
    text: str  # what the docstring says of it

    @property
    def required(self) -> bool:
        return self.parameter.default is inspect.Parameter.empty and not self.many

    @property
    def many(self) -> bool:
        return self.parameter.kind is inspect.Parameter.VAR_POSITIONAL

    @property
    def by_place(self) -> bool:
        return self.many or self.parameter.kind is inspect.Parameter.POSITIONAL_ONLY

    @property
    def label(self) -> str:
        return self.parameter.name.upper() if self.by_place else f"--{self.parameter.name}"

    def read(self, text: str) -> Any:
        return read_value(self.label, text, self.kind)


def run_command(target: Function | Commands, program: str = "") -> None:
    """Run what `sys.argv` asks for: a function, or one of several by their names, which may be nested.

    What is wrong is said in a line, and the exit status is 1; `--help` explains the command and runs nothing. What this
    project logs is printed as lines of text on stderr.

    Args:
        target: the function, or name → function or such a mapping.
        program: what people start, by default the file that runs.
    """
    show_errors_briefly()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("shared").setLevel(logging.INFO)  # what is counted and passed over; of other packages, warnings
    words, program = sys.argv[1:], program or Path(sys.argv[0]).name
    while not callable(target):
        if words and words[0] in ("-h", "--help"):
            print(table_help(target, program))
            return
        name = words.pop(0) if words else ""
        if name not in target:
            wrong = f"{name}: no such command of {program}" if name else f"{program}: a command is missing"
            raise DataError(f"{wrong}, expected {', '.join(target)}{did_you_mean(name, target)} See {program} --help.")
        target, program = target[name], f"{program} {name}"
    if {"-h", "--help"} & set(words):
        print(function_help(target, program))
        return
    bound = read_words(target, words, program)
    target(*bound.args, **bound.kwargs)


def read_words(function: Function, words: Sequence[str], program: str) -> inspect.BoundArguments:
    """The arguments of a function, as the words of a command line give them.

    Raises:
        DataError: for an option that is unknown, missing, given twice or of another kind, and for a word too many.
    """
    options, given, loose, waiting = options_of(function), {}, [], deque(words)
    while waiting:
        word = waiting.popleft()
        if not word.startswith("-") or re.fullmatch(r"-\.?\d.*", word):
            loose.append(word)
            continue
        flag, equals, text = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if name not in options or options[name].many:
            known = [f"--{known}" for known, option in options.items() if not option.many]
            hint = did_you_mean(f"--{name}", known)
            raise DataError(f"{flag}: no such option of {program}{hint} See {program} --help.")
        if name in given:
            raise DataError(f"--{name} is given twice.")
        given[name] = options[name].read(text if equals else next_text(options, name, waiting))
    places = [o for name, o in options.items() if name not in given and (o.required or o.by_place) and not o.many]
    given |= {option.parameter.name: option.read(word) for option, word in zip(places, loose, strict=False)}
    surplus = loose[len(places) :]
    for option in options.values():
        if option.many:
            given[option.parameter.name], surplus = tuple(map(option.read, surplus)), []
    if surplus:
        raise DataError(f"{surplus[0]}: {program} takes no further word; give options by name. See {program} --help.")
    if missing := [option for name, option in options.items() if option.required and name not in given]:
        labels = " and ".join(option.label for option in missing)
        verb = "is" if len(missing) == 1 else "are"
        raise DataError(f"{labels} {verb} missing: {'; '.join(o.text for o in missing)} See {program} --help.")
    bound = inspect.signature(function).bind_partial()
    bound.arguments.update(given)
    bound.apply_defaults()
    return bound


def next_text(options: Mapping[str, Option], name: str, waiting: deque[str]) -> str:
    """The word behind an option, which is its value. A switch needs none."""
    option, ahead = options[name], waiting[0] if waiting else "--"
    if isinstance(option.kind, Flag):
        # where any number of words may follow, one that is neither true nor false is one of them
        free = any(other.many for other in options.values()) and not option.kind.accepts(ahead)
        return "true" if ahead.startswith("--") or free else waiting.popleft()
    if ahead.startswith("--"):
        raise DataError(f"{option.label} has no value, expected {option.kind.expected}.")
    return waiting.popleft()


def options_of(function: Function) -> dict[str, Option]:
    """The parameters of a function, by name."""
    hints, texts = get_type_hints(function, include_extras=True), argument_texts(function)
    parameters = inspect.signature(function).parameters
    return {n: Option(p, kind_of(hints[n], p.default), texts.get(n, "")) for n, p in parameters.items()}


def kind_of(annotation: Any, default: Any) -> Kind:
    """The kind of value that an annotation stands for; text may be empty where it is by default."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not NoneType)
    if found := getattr(annotation, "__metadata__", ()):
        return found[0]
    return {int: Whole(), float: Number(), bool: Flag(), str: Text(empty=default == "")}[annotation]


def argument_texts(function: Function) -> dict[str, str]:
    """What the section `Args:` of a docstring says of each parameter, in a line."""
    section = (inspect.getdoc(function) or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n     .*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else "."


class Paragraphs(argparse.HelpFormatter):
    """Keeps the paragraphs of a description apart."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(textwrap.fill(" ".join(part.split()), width) for part in text.split("\n\n"))


def table_help(commands: Commands, program: str) -> str:
    """The names of commands, each with the first line of what it does."""
    parser = argparse.ArgumentParser(program, f"{program} COMMAND ...", add_help=False, formatter_class=Paragraphs)
    group = parser.add_argument_group("commands", f"{program} COMMAND --help says more.")
    for name, command in commands.items():
        first = (inspect.getdoc(command) or "").partition("\n")[0] if callable(command) else ", ".join(command)
        group.add_argument(name, help=first.replace("%", "%%"))
    return parser.format_help()


def function_help(function: Function, program: str) -> str:
    """What a function does, and what each of its options means and may be."""
    options = list(options_of(function).values())
    needed = "".join(f" {option.label} {option.parameter.name.upper()}" for option in options if option.required)
    words = "".join(f" [{option.label}{' ...' * option.many}]" for option in options if option.by_place)
    text = (inspect.getdoc(function) or "").partition("\nArgs:\n")[0]
    usage = f"{program}{words}{needed} [OPTION ...]".replace("%", "%%")
    parser = argparse.ArgumentParser(program, usage, text, add_help=False, formatter_class=Paragraphs)
    groups = {True: parser.add_argument_group("required"), False: parser.add_argument_group("options")}
    for option in options:
        shown = "[true|false]" if isinstance(option.kind, Flag) else option.parameter.name.upper()
        metavar = {} if option.by_place else {"metavar": shown}
        groups[option.required].add_argument(option.label, help=option_help(option).replace("%", "%%"), **metavar)
    return parser.format_help()


def option_help(option: Option) -> str:
    """The text of an option, what is expected and the default."""
    facts = [] if option.kind.expected in (Text().expected, Flag().expected) else [option.kind.expected]
    default = option.parameter.default
    if not option.required and not option.many and default not in (None, "", ()):
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        facts.append(f"by default {shown.lower() if isinstance(default, bool) else shown}")
    return option.text + (f" [{'; '.join(facts)}]" if facts else "")
