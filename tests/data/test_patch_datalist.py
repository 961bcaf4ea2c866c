from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.data import domain_names, load_patches, patch_labels, positive_weight
from shared.utils import DataError

SPLITS = ("training", "validation", "test")


def make_content(domains: tuple[str, ...] = ("CS", "XR")) -> dict[str, Any]:
    """Four patches of each domain in each split, of two classes in turn; the names of the files tell all of it."""
    content: dict[str, Any] = {"labels": {"0": "other", "1": "mitotic"}}
    for split in SPLITS:
        content[split] = [
            {"image": f"{d}/{split}_{i}.png", "label": i % 2, "domain": d, "slide": f"{split}_{i // 2}"}
            for d in domains
            for i in range(4)
        ]
    return content


def write(folder: Path, content: dict[str, Any], missing: tuple[str, ...] = ()) -> Path:
    for split in SPLITS:
        entries = content.get(split)
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and isinstance(entry.get("image"), str) and entry["image"] not in ("", *missing):
                (folder / entry["image"]).parent.mkdir(exist_ok=True)
                (folder / entry["image"]).touch()
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder / "dataset.json"


def cases(*arguments: Any, **options: Any) -> list[str]:
    return [patch["case"] for patch in load_patches(*arguments, **options)]


def test_a_split_in_the_order_of_the_list(tmp_path: Path) -> None:
    path = write(tmp_path, make_content())
    patches = load_patches(path, "validation")
    assert [p["case"] for p in patches] == [f"{d}/validation_{i}.png" for d in ("CS", "XR") for i in range(4)]
    assert patches[5] == {
        "image": str(tmp_path / "XR/validation_1.png"),
        "label": 1,
        "domain": "XR",
        "slide": "validation_0",
        "case": "XR/validation_1.png",
    }


@pytest.mark.parametrize("split", SPLITS)
def test_a_domain_that_is_held_out_never_comes(tmp_path: Path, split: str) -> None:
    path = write(tmp_path, make_content(("CS", "S360", "XR")))
    for domains in (["XR", "CS"], ("CS", "XR")):
        patches = load_patches(path, split, domains)
        assert domain_names(patches) == ["CS", "XR"]
        assert len(patches) == 8
        assert all(patch["case"].split("/")[1].startswith(split) for patch in patches)


def test_all_of_the_unseen_domains_and_the_split_of_the_seen_ones(tmp_path: Path) -> None:
    path = write(tmp_path, make_content(("CS", "S360", "XR")))
    found = cases(path, "test", None, True, ["CS", "XR"])
    of_the_split = [f"{d}/test_{i}.png" for d in ("CS", "XR") for i in range(4)]
    assert sorted(found) == sorted(of_the_split + [f"S360/{split}_{i}.png" for split in SPLITS for i in range(4)])
    assert cases(path, "test", ["S360"], True, ["CS", "XR"]) == [f"S360/{s}_{i}.png" for s in SPLITS for i in range(4)]
    assert cases(path, "test", ["CS"], True, ["CS", "XR"]) == of_the_split[:4]
    assert len(cases(path, "test", None, False, ["CS", "XR"])) == 12
    with pytest.raises(DataError, match=r"what it was trained on is not known.*model\.json"):
        load_patches(path, "test", whole_unseen=True)


def test_all_of_an_unseen_domain_where_a_split_is_missing(tmp_path: Path) -> None:
    content = make_content()
    content["validation"] = []
    del content["training"]
    assert len(cases(write(tmp_path, content), "test", None, True, ["CS"])) == 8


def test_only_the_unseen_domains_of_the_split(tmp_path: Path) -> None:
    """Camelyon17-WILDS has another unseen hospital in `ood_validation` and in `test`."""
    content = make_content(("CS", "XR"))
    write(tmp_path, content)
    content["ood_validation"] = [entry for entry in content["validation"] if entry["domain"] == "XR"]
    content["unlabelled"] = [{"image": "none.png", "domain": "XR", "slide": "a", "labelled": False}]
    for split in SPLITS:
        content[split] = [entry for entry in content[split] if entry["domain"] == "CS"]
    path = write(tmp_path, content)
    assert cases(path, "ood_validation", None, True, ["S360"]) == [f"XR/validation_{i}.png" for i in range(4)]
    assert len(cases(path, "test", None, True, ["S360"])) == 12


def test_other_fields_of_the_source_are_left_out(tmp_path: Path) -> None:
    """What one entry lacks, or holds as null, could not be put into a batch."""
    content = make_content()
    content["training"][0]["grade"] = None
    patches = load_patches(write(tmp_path, content), "training")
    assert {tuple(sorted(patch)) for patch in patches} == {("case", "domain", "image", "label", "slide")}


def test_scanners_by_another_of_their_names(tmp_path: Path) -> None:
    path = write(tmp_path, make_content())
    for split in SPLITS:
        assert cases(path, split, ["Aperio CS2"]) == cases(path, split, ["CS"])


def test_slides_in_training_and_test_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = make_content()
    load_patches(write(tmp_path, content), "training")
    assert not caplog.records
    content["test"][0]["slide"] = content["training"][0]["slide"]
    load_patches(write(tmp_path, content), "training")
    assert f"share 1 slides, such as {content['training'][0]['slide']}" in caplog.text


def test_unlabelled_patches_never_come(tmp_path: Path) -> None:
    content = make_content()
    for split in SPLITS:
        content[split][0] = {"image": f"CS/{split}_0.png", "domain": "CS", "slide": "a", "labelled": False}
        content[split][4]["labelled"] = True
    path = write(tmp_path, content)
    for split in SPLITS:
        found = cases(path, split)
        assert len(found) == 7
        assert f"CS/{split}_0.png" not in found
    assert len(cases(path, "test", None, True, ["XR"])) == 4 + 9
    content["test"] = [{**entry, "labelled": False} for entry in content["test"]]
    with pytest.raises(DataError, match=r"no patch in the list 'test' is labelled\. It has labelled patches of none"):
        load_patches(write(tmp_path, content), "test")


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        (["XR", "S60", "CZ"], r"dataset\.json: there is no domain S60, CZ\. Known: CS, XR\."),
        ("XR", r"domains are 'XR', expected a list of names such as \"\['XR','CS'\]\""),
        ([], r"domains are \[\], expected a list"),
        (3, "domains are 3, expected a list"),
        ([3], r"domains are \[3\], expected a list"),
        ({"XR": 1}, "expected a list of names"),
    ],
)
def test_bad_domains(tmp_path: Path, domains: Any, message: str) -> None:
    path = write(tmp_path, make_content())
    for split in ("training", "test"):
        with pytest.raises(DataError, match=message):
            load_patches(path, split, domains)


def test_a_known_domain_without_a_patch_in_the_split(tmp_path: Path) -> None:
    content = make_content()
    content["test"] = content["test"][:4]
    content["training"] = content["training"][:4]
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=r"'test' is of the domains XR\. It has labelled patches of CS \(4\)"):
        load_patches(path, "test", ["XR"])
    assert len(cases(path, "test", ["XR", "CS"])) == 4
    with pytest.raises(DataError, match=r"in training, the domain XR has no patch: .*--train_domains"):
        load_patches(path, "training", ["XR", "CS"])


def test_a_domain_with_one_class(tmp_path: Path) -> None:
    content = make_content()
    for split in SPLITS:
        content[split] = content[split][:4] + [e for e in content[split][4:] if e["label"] == 1]
    path = write(tmp_path, content)
    with pytest.raises(DataError, match="in training, the domain XR has only patches of class 1"):
        load_patches(path, "training")
    assert len(cases(path, "training", ["CS"])) == 4
    assert len(cases(path, "validation")) == 6  # the AUC over all domains is defined
    with pytest.raises(
        DataError, match=r"in validation, all 2 patches of the domains XR \(2\) are of class 1: the AUC"
    ):
        load_patches(path, "validation", ["XR"])
    assert len(cases(path, "test", ["XR"])) == 2


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (None, r"the list 'training' is missing. It has 'validation' \(8\), 'test' \(8\)"),
        ([], "the list 'training' is empty"),
        ("a path", "the list 'training' is not a list"),
    ],
)
def test_no_split(tmp_path: Path, training: Any, message: str) -> None:
    content = make_content() | {"training": training}
    if training is None:
        del content["training"]
    with pytest.raises(DataError, match=message):
        load_patches(write(tmp_path, content), "training")


@pytest.mark.parametrize("label", [True, "1", "mitotic", 2, -1, 0.5, 1.0, None, [1]])
def test_bad_labels(tmp_path: Path, label: Any) -> None:
    content = make_content()
    content["test"][0]["labelled"] = False
    content["test"][3]["label"] = label
    with pytest.raises(DataError, match=r"dataset\.json: entry 3 of 'test' is .*Expected an image, a label of 0 or 1"):
        load_patches(write(tmp_path, content), "test")


@pytest.mark.parametrize("key", ["image", "label", "domain", "slide"])
@pytest.mark.parametrize("value", [None, "", 7, ["a"], {}])
def test_missing_and_wrong_fields(tmp_path: Path, key: str, value: Any) -> None:
    content = make_content()
    content["test"][2][key] = value
    with pytest.raises(DataError, match="entry 2 of 'test'"):
        load_patches(write(tmp_path, content), "test")
    del content["test"][2][key]
    with pytest.raises(DataError, match="entry 2 of 'test'"):
        load_patches(write(tmp_path, content), "test")


@pytest.mark.parametrize("entry", ["CS/0.png", 1, None, []])
def test_entries_of_another_kind(tmp_path: Path, entry: Any) -> None:
    content = make_content()
    content["test"][1] = entry
    with pytest.raises(DataError, match="entry 1 of 'test'"):
        load_patches(write(tmp_path, content), "test")


def test_missing_files(tmp_path: Path) -> None:
    names = tuple(f"{d}/test_{i}.png" for d in ("CS", "XR") for i in range(3))
    path = write(tmp_path, make_content(), missing=names)
    with pytest.raises(
        DataError, match=r"6 of the 8 files listed in 'test' do not exist: .*CS/test_0\.png, .*, \.\.\."
    ):
        load_patches(path, "test")
    with pytest.raises(DataError, match=r"3 of the 4 files .*XR/test_2\.png\. Paths are relative to"):
        load_patches(path, "test", ["XR"])
    assert len(cases(path, "training")) == 8


def test_listed_twice(tmp_path: Path) -> None:
    content = make_content()
    content["test"].append(dict(content["test"][1]))
    with pytest.raises(DataError, match=r"'test' lists CS/test_1\.png more than once \(1 such\)"):
        load_patches(write(tmp_path, content), "test")


def test_no_datalist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: no such file\. Expected a datalist of patches"):
        load_patches(tmp_path / "none.json", "test")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DataError, match=r"list\.json: holds a JSON list"):
        load_patches(tmp_path / "list.json", "test")


def test_names_of_the_classes(tmp_path: Path) -> None:
    assert patch_labels(write(tmp_path, make_content())) == {"other": 0, "mitotic": 1}


@pytest.mark.parametrize(
    "labels", [None, ["a", "b"], {"0": "a"}, {"0": "a", "1": "a"}, {"1": "a", "2": "b"}, {"0": None, "1": "a"}]
)
def test_bad_names_of_the_classes(tmp_path: Path, labels: Any) -> None:
    path = write(tmp_path, make_content() | {"labels": labels})
    with pytest.raises(DataError, match=r"dataset\.json: 'labels' is .*expected the names of the two classes"):
        patch_labels(path)


def test_both_classes_weigh_the_same() -> None:
    patches = [{"label": int(i < 3)} for i in range(10)]
    weight = positive_weight(patches)
    assert sum(weight for p in patches if p["label"]) == pytest.approx(sum(1 for p in patches if not p["label"]))
