"""What a pull request to the MONAI model zoo needs of a packed bundle, and what still bars one.

After its CONTRIBUTING.md, README template and `ci` folder, as of October 2024.
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shared.utils import DataError, atomic_path, fault_list

from .archive import read_object
from .bundle import CARD, METADATA, read_json
from .package import WEIGHTS, Package
from .sample_data import task_of, write_images, write_sample, write_scans

LARGEST_FILE = 25_000_000  # bytes, of any file in a pull request
ZOO_PYTHON = "3.10"  # of the zoo's CI
OUR_PYTHON = "3.11"
TEST_TEMPLATE = Path(__file__).with_name("zoo_unit_test.template")
USAGE = ("Training", "Evaluation", "Inference", "Export", "Choices where the paper is silent")
Sections = Mapping[str, str]


def sections(card: str) -> dict[str, str]:
    """The parts of a model card by their titles; the part before the first title by an empty one."""
    first, *others = re.split(r"^## ", card, flags=re.MULTILINE)
    parts = {"": first}
    for part in others:
        title, _, text = part.partition("\n")
        parts[title.strip()] = text.strip()
    return parts


def table_row(text: str, name: str) -> str:
    """What a two-column table says behind NAME; empty where it says nothing."""
    found = re.search(rf"^\| {re.escape(name)} \| (.*) \|$", text, flags=re.MULTILINE)
    return found[1].strip() if found else ""


def under(parts: Sections, titles: list[str]) -> str:
    """Some parts of a card as subsections of the zoo's."""
    return "\n\n".join(f"#### **{title}**\n{parts[title]}" for title in titles)


def zoo_card(card: str, metadata: Mapping[str, Any], name: str, note: str) -> str:
    """The model card in the sections of the zoo's template."""
    parts, formats = sections(card), metadata["network_data_format"]
    modality = next(iter(formats["inputs"].values()))["modality"]
    tags = [metadata["task"].partition(" ")[0], modality, *name.split("_")]
    commands = re.search(r"```bash\n.*?```", parts[""], flags=re.DOTALL)
    usage = [title for title in USAGE if title in parts]
    versions = {"monai": metadata["monai_version"], "pytorch": metadata["pytorch_version"]}
    versions |= {"numpy": metadata["numpy_version"], **metadata["required_packages_version"]}
    references = [f"[{i}] {text}" for i, text in enumerate(metadata["references"], 1)]
    content = {
        "### **Authors**": metadata["authors"],
        "### **Tags**": ", ".join(tags),
        "## **Model Description**": f"{metadata['description']}\n\n**{note}**",
        "## **Data**": f"{metadata['data_source']} The terms of the data are in `docs/data_license.txt`."
        f"\n\n{parts.get('Data', '')}",
        "#### **Preprocessing**": f"Input: {metadata['image_classes']}.\n\nOutput: {metadata['pred_classes']}.",
        "## **Performance**": f"{table_row(parts[''], 'score to expect')}\n\n"
        + under(parts, [title for title in parts if title and title not in ("Data", *USAGE)]),
        "## **Additional Usage Steps**": f"{commands[0] if commands else ''}\n\n{under(parts, usage)}",
        "## **System Configuration**": f"{table_row(parts[''], 'cost')}.\n\nPython {OUR_PYTHON} or newer; tested with "
        + ", ".join(f"{package} {version}" for package, version in versions.items())
        + ".",
        "## **Limitations**": metadata["intended_use"],
        "## **References**": "\n\n".join(references),
    }
    body = "\n\n".join(f"{title}\n{text.strip()}" for title, text in content.items())
    return f"# {metadata['name']}\n\n{body}\n"


def unit_test(name: str, metadata: Mapping[str, Any]) -> str:
    """The zoo's test of a bundle, on made-up data that it writes by itself."""
    try:
        task = task_of(metadata)
    except ValueError as e:
        raise DataError(f"{name}: {e}") from None
    data = "\n\n".join(map(inspect.getsource, (write_scans, write_images, write_sample)))
    text = TEST_TEMPLATE.read_text(encoding="utf-8").replace("# WRITE_SAMPLE\n", data)
    return text.replace("BUNDLE_NAME", name).replace("BUNDLE_TASK", task)


def barriers(package: Package, folder: Path, zoo: Path) -> Iterator[str]:
    """What has to be done before a pull request is in order, a line each.

    Args:
        package: what is to be published.
        folder: where it is laid out in `zoo`.
        zoo: the root of the zoo.
    """
    if not package.weights:
        yield "There are no trained weights: the zoo wants models/model.pt, or large_files.yml with its address."
    elif package.record.get("synthetic") or not package.record:
        yield package.note
    if package.weights and not package.url and not (folder / WEIGHTS).is_file():
        yield "The weights are too large for a pull request: publish the file, and package with --weights_url."
    yield from (
        f"{path.relative_to(zoo)} has {path.stat().st_size / 1e6:.0f} MB, 25 are allowed."
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.stat().st_size > LARGEST_FILE
    )
    if package.weights:
        yield "docs/data_license.txt: say whether the terms of the training data allow the weights to be passed on."
    yield "docs/README.md, Performance: enter the scores of these very weights (configs/evaluate.json) on real data."
    if "contributors" in package.bundle.metadata["authors"]:
        yield "configs/metadata.json and docs/README.md: name the authors; `authors` and `copyright` name nobody."
    published = zoo / "models" / "model_info.json"
    if not published.is_file():
        yield f"Not checked, for want of models/model_info.json: whether {package.title} is in the zoo already."
    elif package.title in read_object(published):
        yield f"{package.title} is in the zoo already: raise `version`, and tell in `changelog` what is new."
    yield f"The bundle needs Python {OUR_PYTHON}, the zoo's CI had {ZOO_PYTHON} in October 2024: ask for a newer one."
    yield "Run ./runtests.sh --autofix and --codeformat in the zoo (isort, black, flake8, pytype): not run here."
    yield "Open an issue in the zoo first, and name the branch of the pull request after it."


def unit_test_path(zoo: Path, name: str) -> Path:
    return zoo / "ci" / "unit_tests" / f"test_{name}.py"


def refuse_zoo(zoo: Path, name: str) -> None:
    """Raise a `DataError` where a bundle is in the zoo, maybe with somebody's edits, or the zoo's list is broken."""
    for path in (zoo / "models" / name, unit_test_path(zoo, name)):
        if path.exists():
            raise DataError(f"{path}: is there already. Delete it first, or choose another --zoo_dir.")
    read_object(zoo / "models" / "model_info.json")


def lay_out_pull_request(package: Package, source: Path, zoo: Path, report: Path) -> None:
    """Write a packed bundle, its unit test and its card in the zoo's form below `zoo`; say what still bars it.

    Args:
        package: what is to be published.
        source: the packed bundle as a folder.
        zoo: a folder, or a clone of the zoo, without this bundle and its unit test.
        report: the text file for what is printed, too.

    Raises:
        DataError: when there is something in the bundle's place, or the zoo's list is broken.
    """
    name, place = source.name, zoo / "models" / source.name
    metadata = read_json(source / METADATA)
    test = unit_test(name, metadata)
    refuse_zoo(zoo, name)
    with atomic_path(place) as temporary:
        shutil.copytree(source, temporary, ignore=too_large)
        for path in temporary.rglob("*.json"):  # as the zoo's formatter has them
            path.write_text(json.dumps(read_json(path), indent=4) + "\n", encoding="utf-8")
        card = temporary / CARD
        card.write_text(zoo_card(card.read_text("utf-8"), metadata, name, package.note), encoding="utf-8")
    with atomic_path(unit_test_path(zoo, name)) as temporary:
        temporary.write_text(test, encoding="utf-8")
    bars = list(barriers(package, place, zoo))
    text = f"Before a pull request with {package.title} to the model zoo:{fault_list(bars)}"
    with atomic_path(report) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")
    print(text)


def too_large(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(".pt") and (Path(folder) / name).stat().st_size > LARGEST_FILE]
