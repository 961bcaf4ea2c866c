"""The command line of `python -m monai.bundle run`, which takes any option: checked before the run does anything."""

from __future__ import annotations

import argparse
import difflib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fire
import monai.bundle
from monai.bundle import ConfigParser, ConfigWorkflow, ReferenceResolver, update_kwargs
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

from .errors import DataError, settings_at_hand, wait_for_first_rank
from .settings import NEEDS, SETTINGS
from .values import check_value

# Names that MONAI takes for itself.
OWN = {*inspect.signature(monai.bundle.run).parameters, *inspect.signature(ConfigWorkflow.__init__).parameters}
OWN = (OWN - {"override", "self"}) | {"workflow_name"}


@dataclass(frozen=True)
class CommandLine:
    """What `monai.bundle run` was given.

    Attributes:
        files: of `--config_file`, in their order.
        options: all others, by name, as fire reads them; those of `--args_file` too.
        dropped: those that are None on the command line itself, which MONAI takes for not given.
    """

    files: list[str]
    options: dict[str, Any]
    dropped: tuple[str, ...] = ()

    def config_option(self, files: Sequence[str] | None = None) -> str:
        """`--config_file` as one types it, with the files given or with other ones."""
        files = self.files if files is None else files
        listed = "[" + ",".join(f"'{file}'" for file in files) + "]"
        return f"--config_file {files[0]}" if len(files) == 1 else f'--config_file "{listed}"'


def command_line() -> CommandLine | None:
    """The command line of this process, or None where it is not that of `python -m monai.bundle run`.

    A process that torchrun has started is one of its; MONAI Label, MonaiAlgo, a notebook and the other commands of
    `monai.bundle` are not.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None or spec.name != "monai.bundle.__main__" or sys.argv[1:2] != ["run"]:
        return None
    given: dict[str, Any] = {}

    def run(  # the signature of monai.bundle.run, by which fire reads the words
        run_id: Any = None,
        init_id: Any = None,
        final_id: Any = None,
        meta_file: Any = None,
        config_file: Any = None,
        logging_file: Any = None,
        tracking: Any = None,
        args_file: Any = None,
        **override: Any,
    ) -> None:
        given.update({key: value for key, value in locals().items() if value is not None and key in OWN} | override)

    fire.Fire(run, command=sys.argv[2:])
    dropped = tuple(key for key, value in given.items() if value is None)
    given = dict.fromkeys(dropped) | update_kwargs(given.pop("args_file", None), **given)
    files = given.pop("config_file", [])
    return CommandLine([files] if isinstance(files, str) else [*map(str, files)], given, dropped)


def is_federated(run_name: str | None) -> bool:
    """Whether MonaiAlgo runs the configuration, as a client of federated learning: it gives each run a `run_name`.

    On a command line that is the name of a run that MLflow tracks.
    """
    return run_name is not None and command_line() is None


def check_command_line() -> None:
    """Refuse options that no configuration knows, values that a setting cannot have and overlays in the wrong order.

    With `--help`, print the settings and end. Call it first in the `initialize` section of a bundle. Where there is no
    command line of `monai.bundle run`, nothing is checked: see `command_line`.

    Raises:
        DataError: names the option, what is expected, and the one that was probably meant.
    """
    line = command_line()
    if line is None:
        return
    contents = {file: ConfigParser.load_config_file(file) for file in line.files}
    if line.options.keys() & {"help", "h"}:
        print(help_text(line, contents))
        raise SystemExit(0)
    try:
        check_order(line, contents)
        content = ConfigParser.load_config_files(line.files)
        check_names(line, content)
        check_nothing(line, content)
        check_references(line, contents, content)
        check_values(content | line.options)
        check_needs(line, content)
        settings_at_hand.update(content)  # for what is said where memory is not enough
    except DataError:
        wait_for_first_rank(int(os.environ.get("RANK", 0)))
        raise


def check_order(line: CommandLine, contents: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise a `DataError` with the right order where a file undoes what one before it says."""
    whole = [file for file in line.files if "imports" in contents[file]]  # overlays add to it, with "+imports"
    if len(whole) > 1:
        raise DataError(f"{' and '.join(whole)} are whole configurations, of which one can run. Leave the others out.")
    if whole and line.files[0] != whole[0]:
        right = line.config_option([*whole, *(file for file in line.files if file not in whole)])
        raise DataError(
            f"{whole[0]} replaces what {line.files[0]}, before it, says. Overlays stand behind what they are laid "
            f"over: {right}"
        )
    for i, file in enumerate(line.files):
        if file in whole:
            continue
        starts = "join_process_group" in str(contents[file].get("initialize"))
        loads = "load_weights" in str(contents[file].get("network"))
        for later in line.files[i + 1 :]:
            own = contents[later]
            if starts and "initialize" in own and "join_process_group" not in str(own["initialize"]):
                right = line.config_option([*(f for f in line.files if f != file), file])
                raise DataError(f"{later} replaces how {file}, before it, starts the processes. Expected {right}")
            if loads and "network" in own and "load_weights" not in str(own["network"]):
                raise DataError(f"{later} is for training: it replaces the weights that {file} loads. Leave it out.")


def check_references(line: CommandLine, contents: Mapping[str, Mapping[str, Any]], content: Mapping[str, Any]) -> None:
    """Raise a `DataError` where an overlay reads what nothing has: then it is laid over the wrong configuration.

    Such an overlay has no effect, or what it replaces fails where MONAI comes to it. One that is for training and for
    what it is laid over, too, may keep what that does not need.
    """
    parser = ConfigParser(deepcopy(dict(content)))
    meta = line.options.get("meta_file", str(Path(line.files[0]).parent / "metadata.json"))
    if isinstance(meta, str) and Path(meta).is_file():
        parser.read_meta(meta)
    parser.update(deepcopy(line.options))
    parser.parse()  # puts in macros, and makes relative names absolute
    known = {name.replace("::", "#") for name in parser.ref_resolver.items} | _names_of_tracking(line)
    for i, file in enumerate(line.files):
        if "imports" in contents[file]:  # whole: packages bake variants in, of which inference needs parts
            continue
        before = ConfigParser(ConfigParser.load_config_files(line.files[:i]))
        keys = {key.removeprefix("+").replace("::", "#") for key in contents[file]} - {"imports"}
        common = {key for key in keys if key.partition("#")[0] in before}
        read = _references([parser[key] for key in (common or keys) if key in parser])
        if lacking := sorted(name for name in read - known if name.partition("#")[0] != ConfigParser.meta_key):
            raise DataError(
                f"{file} reads {lacking[0]}, which {' and '.join(line.files)} do not know"
                f"{_who_knows(lacking[0], line)}. Lay it over what it is for, or leave it out."
            )


def _who_knows(name: str, line: CommandLine) -> str:
    """The other configurations of the bundle that have a key, to be added to an error."""
    files = sorted(Path(line.files[0]).parent.glob("*.json"))
    have = [str(path) for path in files if f'"{name.partition("#")[0]}":' in path.read_text(errors="replace")]
    return f"; {' and '.join(have)} would" if have else ""


def _names_of_tracking(line: CommandLine) -> set[str]:
    """The keys that MONAI adds for the tracking of an experiment."""
    return {*DEFAULT_MLFLOW_SETTINGS["configs"]} if "tracking" in line.options else set()


def check_names(line: CommandLine, content: Mapping[str, Any]) -> None:
    """Raise a `DataError` with what was probably meant where an option is no key of the configuration.

    A key that is new may stand at the top where an expression refers to it, or in a component, or in a table of values.
    """
    parser, of = ConfigParser(dict(content)), " and ".join(line.files)
    referred = _references(content) | _references(line.options)
    tracking = _names_of_tracking(line)
    for option in line.options:
        key = option.removeprefix("+").replace("::", "#")
        top, parent = key.partition("#")[0], key.rpartition("#")[0]
        if key in OWN | tracking | referred or top == ConfigParser.meta_key or key in parser:
            continue
        if parent and parent in parser and _is_open(parser[parent]):
            continue
        keys = [name.replace("::", "#") for name in _keys(content)] if "#" in key else [*content, *OWN]
        near = difflib.get_close_matches(key, keys, n=1)
        meant = f"did you mean {near[0]}?" if near else "see --help for those there are."
        raise DataError(f"{option}: no such setting of {of}; {meant}")
    if (run_id := line.options.get("run_id", "run")) not in parser:
        raise DataError(f"{run_id!r} is no option, and no section of {of} to run. Options begin with --.")


def check_nothing(line: CommandLine, content: Mapping[str, Any]) -> None:
    """Raise a `DataError` with what is right where an option is None, which MONAI drops, or null, which is a text."""
    parser = ConfigParser(dict(content))
    for option, value in line.options.items():
        key = option.removeprefix("+").replace("::", "#")
        if key in OWN or (option in line.dropped and value is None and key in parser and parser[key] is None):
            continue  # it is None anyway
        if option in line.dropped:
            what = "None, which MONAI takes for not given"
        elif value in ("None", "null"):
            what = f"the text {value!r}"
        else:
            continue
        raise DataError(f"{option} is {what}, expected a value, or for nothing an expression: --{option} '$None'")


def without_export(dicom: Sequence[str], store: str) -> None:
    """See that no DICOM objects are asked for where the configuration has nothing to make them with.

    Raises:
        DataError: when they are.
    """
    if dicom or store:
        raise DataError(
            f"--{'dicom' if dicom else 'store'} needs the overlay that makes DICOM objects: "
            "--config_file \"['configs/inference.json','configs/variants/dicom.json']\""
        )


def check_values(content: Mapping[str, Any]) -> None:
    """Raise a `DataError` where a setting is a value, and not an expression, that it cannot have."""
    for name, value in content.items():
        if name in SETTINGS and not (isinstance(value, str) and value.startswith(("$", "@", "%"))):
            check_value(name, value, SETTINGS[name][0])


def check_needs(line: CommandLine, content: Mapping[str, Any]) -> None:
    """Raise a `DataError` where an option is given that has no effect without another one."""
    whole = content | line.options
    for names, others in NEEDS.items():
        given = [name for name in names if name in line.options]
        if given and not any(whole.get(other) for other in others):
            raise DataError(
                f"--{given[0]} has no effect without {' or '.join(f'--{other}' for other in others)}. Give that, too, "
                "or leave it out."
            )


def help_text(line: CommandLine, contents: Mapping[str, Mapping[str, Any]]) -> str:
    """The settings of the configuration, each with its default, what it may be and what it means."""
    content: dict[str, Any] = {}
    for part in contents.values():
        content |= part
    parser = argparse.ArgumentParser(
        prog="python -m monai.bundle run",
        usage=f"%(prog)s {line.config_option()} [--SETTING VALUE ...]",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34),
        epilog="Any other key of the configuration can be set in the same way, one in another as train#trainer#amp. "
        "Values that begin with $ or @ are expressions, '$None' for nothing.",
        add_help=False,
    )
    group = parser.add_argument_group("settings, with their defaults")
    for name, (kind, meaning) in SETTINGS.items():
        if name in content:
            default = content[name] if isinstance(content[name], str) and content[name] else repr(content[name])
            text = f"{meaning} ({kind.expected})".replace("%", "%%")
            group.add_argument(f"--{name}", metavar=default if len(default) <= 60 else f"{default[:57]}...", help=text)
    return parser.format_help()


def _is_open(value: Any) -> bool:
    """Whether a key may be added: to the arguments of a component, or to a table of plain values."""
    if not isinstance(value, dict):
        return False
    return "_target_" in value or not any(isinstance(item, dict | list) for item in value.values())


def _references(value: Any) -> set[str]:
    """The keys that expressions refer to, and that macros copy."""
    names = {name for text in _strings(value) for name in ReferenceResolver.match_refs_pattern(text)}
    names |= {text[1:] for text in _strings(value) if text.startswith("%")}
    return {name.replace("::", "#") for name in names}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(item)


def _keys(value: Any, start: str = "") -> Iterator[str]:
    """Every key of a configuration, with those above it."""
    if isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield f"{start}{key}"
            yield from _keys(item, f"{start}{key}#")
