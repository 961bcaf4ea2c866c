"""The command line made of a signature, and that every script has it."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import command_line
import pytest
from command_line import AtATime, Seed, parser
from command_line.parser import options_of, read_words, run_command
from commands import run

from shared.utils import DataError
from shared.utils.values import Choice, Number, Several, Text, Whole

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
# All but the one that looks for the packages which the others need.
COMMANDS = sorted(path for path in SCRIPTS.glob("*.py") if path.name != "check_env.py")
COMMANDS.append(SCRIPTS / "monai_label" / "serve.py")


def prepare(
    data_dir: str,
    output_dir: str,
    cases: Annotated[int, Whole(3)] = 12,
    share: Annotated[float, Number(0, 1)] = 0.5,
    unit: Annotated[str, Choice(("slide", "patch"))] = "slide",
    exclude: Annotated[Sequence[str], Several(Text(), empty=True)] = (),
    sides: Annotated[Sequence[int], Several(Whole(1), 2)] = (1, 2),
    name: str = "",
    seed: Seed = 0,
    workers: AtATime = None,
    overwrite: bool = False,
    label_all: bool = True,
) -> None:
    """Prepare 100 % of it.

    More of it, in
    two lines.

    Args:
        data_dir: where it is.
        output_dir: where it goes,
            in a folder.
        cases, share: how many.
    """


def verify(*bundles: str, jobs: int = 1, run_commands: bool = True) -> None:
    pass


def demo(name: Annotated[str, Choice(("a", "b"))] = "a", /, output_dir: str = "") -> None:
    pass


def read(line: str, function: Callable[..., None] = prepare) -> dict[str, Any]:
    bound = read_words(function, line.split(), "prepare.py")
    function(*bound.args, **bound.kwargs)  # fits the signature
    return bound.arguments


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", {"cases": 12, "exclude": (), "workers": None, "overwrite": False, "label_all": True}),
        ("--cases 3 --seed=7 --share 1", {"cases": 3, "seed": 7, "share": 1}),
        ("--workers 2", {"workers": 2}),
        ("--unit=patch --name 0021", {"unit": "patch", "name": "0021"}),
        ("--name=", {"name": ""}),
        ("--name a=b=c", {"name": "a=b=c"}),
        ("--name=--cases", {"name": "--cases"}),
        ("--exclude 0021,0022", {"exclude": ["0021", "0022"]}),
        ("--sides 3,4", {"sides": [3, 4]}),
        ("--sides (3,4)", {"sides": (3, 4)}),
        ("--overwrite --label_all false", {"overwrite": True, "label_all": False}),
        ("--overwrite true --label_all=False", {"overwrite": True, "label_all": False}),
        ("--label-all false", {"label_all": False}),
    ],
)
def test_options(line: str, expected: dict[str, Any]) -> None:
    found = read(f"--data_dir in --output_dir out {line}")
    assert {key: found[key] for key in expected} == expected
    assert (found["data_dir"], found["output_dir"]) == ("in", "out")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--casez 3", "--casez: no such option of prepare.py; did you mean --cases? See prepare.py --help."),
        ("--case 3", "--case: no such option of prepare.py; did you mean --cases? See prepare.py --help."),
        ("--zzz", "--zzz: no such option of prepare.py. See prepare.py --help."),
        ("-s 3", "-s: no such option of prepare.py; did you mean --seed? See prepare.py --help."),
        ("-- 3", "--: no such option of prepare.py. See prepare.py --help."),
        ("--cases abc", "--cases is 'abc', expected a whole number of 3 or above."),
        ("--cases -1", "--cases is -1, expected a whole number of 3 or above."),
        ("--cases=-1", "--cases is -1, expected a whole number of 3 or above."),
        ("--cases 3.0", "--cases is 3.0, expected a whole number of 3 or above."),
        ("--cases True", "--cases is True, expected a whole number of 3 or above."),
        ("--cases --seed 3", "--cases has no value, expected a whole number of 3 or above."),
        ("--cases", "--cases has no value, expected a whole number of 3 or above."),
        ("--cases 3 --cases 4", "--cases is given twice."),
        ("--share -.5", "--share is -0.5, expected a number from 0 to 1."),
        ("--share nan", "--share is 'nan', expected a number from 0 to 1."),
        ("--seed 99999999999", "--seed is 99999999999, expected a whole number from 0 to 4294967295."),
        ("--workers 0", "--workers is 0, expected a whole number of 1 or above."),
        ("--unit foo", "--unit is 'foo', expected slide or patch."),
        ("--sides 3", "--sides is [3], expected a list of 2, each a whole number of 1 or above."),
        ("--overwrite yes", "--overwrite is 'yes', expected true or false."),
        ("--overwrite -1", "--overwrite is -1, expected true or false."),
        ("--cases 3 4", "4: prepare.py takes no further word; give options by name. See prepare.py --help."),
        ("-1", "-1: prepare.py takes no further word; give options by name. See prepare.py --help."),
    ],
)
def test_what_is_refused(line: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        read(f"--data_dir in --output_dir out {line}")
    assert str(error.value) == message


def test_what_is_missing() -> None:
    with pytest.raises(DataError, match=r"^--data_dir and --output_dir are missing: where it is\.; where it goes, "):
        read("--cases 3")
    with pytest.raises(
        DataError, match=r"^--output_dir is missing: where it goes, in a folder\. See prepare\.py --help"
    ):
        read("--data_dir in")


@pytest.mark.parametrize(
    ("function", "line", "expected"),
    [
        (prepare, "in out --cases 3", {"data_dir": "in", "output_dir": "out", "cases": 3}),
        (prepare, "--data_dir in --cases 3 out", {"data_dir": "in", "output_dir": "out", "cases": 3}),
        (verify, "", {"bundles": (), "run_commands": True}),
        (verify, "a --run_commands b --jobs 2 c", {"bundles": ("a", "b", "c"), "run_commands": True, "jobs": 2}),
        (verify, "a --run_commands false b", {"bundles": ("a", "b"), "run_commands": False}),
        (demo, "b --output_dir out", {"name": "b", "output_dir": "out"}),
        (demo, "--output_dir out", {"name": "a", "output_dir": "out"}),
    ],
)
def test_words(function: Callable[..., None], line: str, expected: dict[str, Any]) -> None:
    assert read(line, function).items() >= expected.items()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `run_command` prints for a command line, in a process that goes on."""
    monkeypatch.setattr(parser, "show_errors_briefly", lambda: None)

    def call(target: Any, line: str) -> str:
        monkeypatch.setattr(sys, "argv", ["/a/tool.py", *line.split()])
        run_command(target)
        return capsys.readouterr().out

    return call


def test_commands_in_tables(said: Callable[..., str]) -> None:
    table = {"make": lambda: print("made"), "rules": {"compare": lambda: print("compared"), "cost": verify}}
    assert said(table, "make") == "made\n"
    assert said(table, "rules compare") == "compared\n"
    for line, message in (
        ("", "tool.py: a command is missing, expected make, rules. See tool.py --help."),
        ("mak", "mak: no such command of tool.py, expected make, rules; did you mean make? See tool.py --help."),
        ("rules", "tool.py rules: a command is missing, expected compare, cost. See tool.py rules --help."),
        (
            "rules cost --job 1",
            "--job: no such option of tool.py rules cost; did you mean --jobs? See tool.py rules cost",
        ),
    ):
        with pytest.raises(DataError) as error:
            said(table, line)
        assert str(error.value).startswith(message)
    assert "make" in said(table, "--help")
    assert "compare" in said(table, "rules -h")


def test_help(said: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    found = said(prepare, "--cases abc --help")
    assert found.startswith("usage: tool.py --data_dir DATA_DIR --output_dir OUTPUT_DIR [OPTION ...]\n")
    assert "\n\nPrepare 100 % of it.\n\nMore of it, in two lines.\n\n" in found
    assert "where it goes, in a folder.\n" in found
    assert "how many. [a whole number of 3 or above; by default 12]" in found
    assert "[a list of 2, each a whole number of 1 or above; by default 1,2]" in found
    assert "--label_all [true|false]" in found
    assert "[by default true]" in found
    assert "usage: tool.py [BUNDLES ...] [OPTION ...]" in said(verify, "-h")


def leaves(target: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Callable[..., None]]]:
    if callable(target):
        yield names, target
    else:
        for name, below in target.items():
            yield from leaves(below, (*names, name))


@pytest.mark.parametrize("script", COMMANDS, ids=lambda path: path.stem)
def test_every_command_says_what_it_takes_and_takes_nothing_else(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[..., str]
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(command_line, "run_command", lambda target, *_: given.append(target))
    runpy.run_path(str(script), run_name="__main__")
    monkeypatch.chdir(tmp_path)
    for names, function in leaves(given[0]):
        options = options_of(function)
        assert [name for name, option in options.items() if not option.text] == []
        shown = said(given[0], " ".join((*names, "--help")))
        assert [option.label for option in options.values() if option.label not in shown] == []
        known = list(options)[-1]
        values = {name: getattr(option.kind, "words", "x")[0] for name, option in options.items() if option.required}
        needed = " ".join(f"--{name} {value}" for name, value in values.items())
        with pytest.raises(DataError, match=rf"--{known}z: no such option of .*; did you mean --{known}\?"):
            said(given[0], f"{' '.join(names)} {needed} --{known}z 1")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_command_line_ends_with_a_line_and_status_1(tmp_path: Path) -> None:
    line = ("histology", "--output_dir", tmp_path / "out", "--slidez", 3)
    done = run(SCRIPTS / "make_synthetic.py", *line, python=sys.executable)
    hint = "did you mean --slides? See make_synthetic.py histology --help."
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"\nError: --slidez: no such option of make_synthetic.py histology; {hint}\n"
    assert list(tmp_path.iterdir()) == []


CODE = """
import logging
from command_line import run_command
def main(name: str):
    '''Say it.

    Args:
        name: what.
    '''
    for package in ("shared.data.label_maps", "monai"):
        logging.getLogger(package).info("%s counts", package)
        logging.getLogger(package).warning("%s warns of %s", package, name)
run_command(main)
"""


def test_what_is_counted_is_printed_and_not_warnings_alone() -> None:
    done = run("-c", CODE, "--name", "a", env={**os.environ, "PYTHONPATH": f"{SCRIPTS.parent}:{SCRIPTS}"})
    lines = ["shared.data.label_maps counts", "shared.data.label_maps warns of a", "monai warns of a"]
    assert done.stderr.splitlines() == lines
