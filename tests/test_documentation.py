"""What the README, CONTRIBUTING, docs/ and the model cards name is there."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest
from bundle_tools.bundle import Bundle
from bundle_tools.card import command_faults, parsed_command

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md"))
CARDS = sorted(ROOT.glob("bundles/*/docs/README.md"))


def anchors(page: str) -> set[str]:
    """What a link to a page may name behind `#`: its headings in small letters, with hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", page, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def lost_links(path: Path) -> list[str]:
    """The relative links of a page that lead to no file, or to no heading of one."""
    links = re.findall(r"\]\((?!\w+:)([^)#\s]*)#?([^)\s]*)\)", path.read_text())
    targets = [(link, anchor, path.parent / link if link else path) for link, anchor in links]
    return [
        f"{link}#{anchor}"
        for link, anchor, target in targets
        if not target.exists() or (anchor and anchor not in anchors(target.read_text()))
    ]


def lost_files(page: str) -> list[str]:
    """The files of scripts and tests that a page names and that are not there; `*` stands for any."""
    named = re.findall(r"(?<![\w/.])(?:scripts|tests)/[\w/*]+(?:\.\w+)?", page)
    return [name for name in named if not any(ROOT.glob(name))]


def lost_names(page: str) -> list[str]:
    """The dotted names below `shared` that a page gives or imports and that are not there."""
    imports = re.findall(r"from (shared[\w.]*) import ([\w, ]+)", page)
    names = [f"{room}.{name.strip()}" for room, names in imports for name in names.split(",")]
    return [name for name in names + re.findall(r"\bshared(?:\.\w+)+", page) if not is_there(name)]


def is_there(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def lost_commands(page: str) -> list[str]:
    """The commands of `monai.bundle` below a `cd bundles/NAME`, with what they name that the bundle has not."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL):
        bundle = None
        for line in block.splitlines():
            if entered := re.match(r"cd (bundles/\w+)", line):
                bundle = Bundle(ROOT / entered[1])
            elif "-m monai.bundle " in line:
                found += command_faults(parsed_command(line), bundle) if bundle else [f"in no bundle: {line}"]
    return found


@pytest.mark.parametrize("path", PAGES + CARDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_the_documentation_names_is_there(path: Path) -> None:
    page = path.read_text()
    assert lost_links(path) == []
    assert lost_files(page) == []
    assert lost_names(page) == []
    assert path in CARDS or lost_commands(page) == []


def test_what_the_documentation_names_wrongly_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# What *is* here, now?\n[a](page.md#what-is-here-now) [b](#there) [c](gone.md#x) [d](https://e.org)"
    )
    assert lost_links(page) == ["#there", "gone.md#x"]
    assert lost_files("`scripts/demo.sh`, scripts/prepare_*.py, tests/bundles/, scripts/voxel.py, in tests/x.py.") == [
        "scripts/voxel.py",
        "tests/x.py",
    ]
    code = (
        "`shared.metrics.ClassDice`\nfrom shared.layers import FuseStyle, Mix\n`from shared.data.btcv import find_btcv`"
    )
    assert lost_names(code) == ["shared.layers.Mix", "shared.data.btcv.find_btcv", "shared.data.btcv"]
    run = "python -m monai.bundle run --config_file configs/"
    assert lost_commands(
        f"```bash\n{run}train.json\ncd bundles/abdominal_unetr_cbs\n{run}train.json --nope 1\n{run}trian.json\n```"
    ) == [f"in no bundle: {run}train.json", "no config has the key nope of --nope", "there is no configs/trian.json"]


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.split()) <= 1000
    linked = [path.relative_to(ROOT).as_posix() for path in (*PAGES, *CARDS) if path != ROOT / "README.md"]
    assert [path for path in linked if f"]({path})" not in readme] == []
