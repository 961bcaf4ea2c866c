from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared.data import domain_names, load_patches, load_regions, patch_labels, patch_mpp, region_labels
from shared.data.histology_datalist import PatchDatalist
from shared.datasets.synthetic_histology import make_synthetic_histology
from shared.utils import DataError

SPLITS = ("training", "validation", "test")
BOXES = [[10, 20, 60, 70], [-5, 0.5, 45, 50.5]]


def make_patches(domains: tuple[str, ...] = ("CS", "XR")) -> dict[str, Any]:
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
    for entry in (e for part in content.values() if isinstance(part, list) for e in part if isinstance(e, dict)):
        if isinstance(entry.get("image"), str) and entry["image"] not in ("", *missing):
            (folder / entry["image"]).parent.mkdir(exist_ok=True)
            (folder / entry["image"]).touch()
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder / "dataset.json"


def patch_cases(*arguments: Any, **options: Any) -> list[str]:
    return [patch["case"] for patch in load_patches(*arguments, **options)]


def test_a_split_in_the_order_of_the_list(tmp_path: Path) -> None:
    path = write(tmp_path, make_patches())
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
    path = write(tmp_path, make_patches(("CS", "S360", "XR")))
    for domains in (["XR", "CS"], ("CS", "XR")):
        patches = load_patches(path, split, domains)
        assert domain_names(patches) == ["CS", "XR"]
        assert len(patches) == 8
        assert all(patch["case"].split("/")[1].startswith(split) for patch in patches)


def test_all_of_the_unseen_domains_and_the_split_of_the_seen_ones(tmp_path: Path) -> None:
    path = write(tmp_path, make_patches(("CS", "S360", "XR")))
    found = patch_cases(path, "test", None, True, ["CS", "XR"])
    of_the_split = [f"{d}/test_{i}.png" for d in ("CS", "XR") for i in range(4)]
    assert sorted(found) == sorted(of_the_split + [f"S360/{split}_{i}.png" for split in SPLITS for i in range(4)])
    assert patch_cases(path, "test", ["S360"], True, ["CS", "XR"]) == [
        f"S360/{s}_{i}.png" for s in SPLITS for i in range(4)
    ]
    assert patch_cases(path, "test", ["CS"], True, ["CS", "XR"]) == of_the_split[:4]
    assert len(patch_cases(path, "test", None, False, ["CS", "XR"])) == 12
    with pytest.raises(DataError, match=r"what it was trained on is not known.*model\.json"):
        load_patches(path, "test", whole_unseen=True)


def test_all_of_an_unseen_domain_where_a_split_is_missing(tmp_path: Path) -> None:
    content = make_patches()
    content["validation"] = []
    del content["training"]
    assert len(patch_cases(write(tmp_path, content), "test", None, True, ["CS"])) == 8


def test_only_the_unseen_domains_of_the_split(tmp_path: Path) -> None:
    """Camelyon17-WILDS has another unseen hospital in `ood_validation` and in `test`."""
    content = make_patches(("CS", "XR"))
    write(tmp_path, content)
    content["ood_validation"] = [entry for entry in content["validation"] if entry["domain"] == "XR"]
    content["unlabelled"] = [{"image": "none.png", "domain": "XR", "slide": "a", "labelled": False}]
    for split in SPLITS:
        content[split] = [entry for entry in content[split] if entry["domain"] == "CS"]
    path = write(tmp_path, content)
    assert patch_cases(path, "ood_validation", None, True, ["S360"]) == [f"XR/validation_{i}.png" for i in range(4)]
    assert len(patch_cases(path, "test", None, True, ["S360"])) == 12


def test_other_fields_of_the_source_are_left_out(tmp_path: Path) -> None:
    """What one entry lacks, or holds as null, could not be put into a batch."""
    content = make_patches()
    content["training"][0]["grade"] = None
    patches = load_patches(write(tmp_path, content), "training")
    assert {tuple(sorted(patch)) for patch in patches} == {("case", "domain", "image", "label", "slide")}


def test_scanners_by_another_of_their_names(tmp_path: Path) -> None:
    path = write(tmp_path, make_patches())
    for split in SPLITS:
        assert patch_cases(path, split, ["Aperio CS2"]) == patch_cases(path, split, ["CS"])


def test_unlabelled_patches_never_come(tmp_path: Path) -> None:
    content = make_patches()
    for split in SPLITS:
        content[split][0] = {"image": f"CS/{split}_0.png", "domain": "CS", "slide": "a", "labelled": False}
        content[split][4]["labelled"] = True
    path = write(tmp_path, content)
    for split in SPLITS:
        found = patch_cases(path, split)
        assert len(found) == 7
        assert f"CS/{split}_0.png" not in found
    assert len(patch_cases(path, "test", None, True, ["XR"])) == 4 + 9
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
    path = write(tmp_path, make_patches())
    for split in ("training", "test"):
        with pytest.raises(DataError, match=message):
            load_patches(path, split, domains)


def test_a_known_domain_without_a_patch_in_the_split(tmp_path: Path) -> None:
    content = make_patches()
    content["test"] = content["test"][:4]
    content["training"] = content["training"][:4]
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=r"'test' is of the domains XR\. It has labelled patches of CS \(4\)"):
        load_patches(path, "test", ["XR"])
    assert len(patch_cases(path, "test", ["XR", "CS"])) == 4
    with pytest.raises(
        DataError, match=r"in training, none of the 0 patches of the domain XR is of class 0 or 1: .*--train_domains"
    ):
        load_patches(path, "training", ["XR", "CS"])
    with pytest.raises(DataError, match=r"in the list 'test' is of the domains XR\."):
        PatchDatalist(path).images("test", ["CS", "XR"])


def test_a_domain_with_one_class(tmp_path: Path) -> None:
    content = make_patches()
    for split in SPLITS:
        content[split] = content[split][:4] + [e for e in content[split][4:] if e["label"] == 1]
    path = write(tmp_path, content)
    with pytest.raises(DataError, match="in training, none of the 2 patches of the domain XR is of class 0: a network"):
        load_patches(path, "training")
    assert len(patch_cases(path, "training", ["CS"])) == 4
    assert len(patch_cases(path, "validation")) == 6  # the AUC over all domains is defined
    with pytest.raises(
        DataError, match=r"in validation, none of the 2 patches of the domains XR \(2\) is of class 0: the AUC"
    ):
        load_patches(path, "validation", ["XR"])
    assert len(patch_cases(path, "test", ["XR"])) == 2
    assert len(PatchDatalist(path).images("training")) == 6  # whatever their classes
    content["ood_validation"] = content.pop("validation")[4:]
    with pytest.raises(DataError, match=r"in ood_validation, none of the 2 .* into 'ood_validation'"):
        load_patches(write(tmp_path, content), "ood_validation")


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (None, r"the list 'training' is missing. It has 'validation' \(8\), 'test' \(8\)"),
        ([], "the list 'training' is empty"),
        ("a path", "the list 'training' is not a list"),
    ],
)
def test_no_split(tmp_path: Path, training: Any, message: str) -> None:
    content = make_patches() | {"training": training}
    if training is None:
        del content["training"]
    with pytest.raises(DataError, match=message):
        load_patches(write(tmp_path, content), "training")


@pytest.mark.parametrize("label", [True, "1", "mitotic", 2, -1, 0.5, 1.0, None, [1]])
def test_bad_labels(tmp_path: Path, label: Any) -> None:
    content = make_patches()
    content["test"][0]["labelled"] = False
    content["test"][3]["label"] = label
    with pytest.raises(
        DataError,
        match=r"dataset\.json: entry 3 of 'test', CS/test_3\.png: found .*expected an image, a label of 0 or 1",
    ):
        load_patches(write(tmp_path, content), "test")


@pytest.mark.parametrize("key", ["image", "label", "domain", "slide"])
@pytest.mark.parametrize("value", [None, "", 7, ["a"], {}])
def test_missing_and_wrong_fields(tmp_path: Path, key: str, value: Any) -> None:
    content = make_patches()
    content["test"][2][key] = value
    with pytest.raises(DataError, match="entry 2 of 'test'"):
        load_patches(write(tmp_path, content), "test")
    del content["test"][2][key]
    with pytest.raises(DataError, match="entry 2 of 'test'"):
        load_patches(write(tmp_path, content), "test")


@pytest.mark.parametrize("entry", ["CS/0.png", 1, None, []])
def test_entries_of_another_kind(tmp_path: Path, entry: Any) -> None:
    content = make_patches()
    content["test"][1] = entry
    with pytest.raises(DataError, match="entry 1 of 'test'"):
        load_patches(write(tmp_path, content), "test")


def test_missing_files(tmp_path: Path) -> None:
    names = tuple(f"{d}/test_{i}.png" for d in ("CS", "XR") for i in range(3))
    path = write(tmp_path, make_patches(), missing=names)
    with pytest.raises(
        DataError, match=r"6 of the 8 files listed in 'test' do not exist: .*CS/test_0\.png, .*, \.\.\."
    ):
        load_patches(path, "test")
    with pytest.raises(DataError, match=r"3 of the 4 files .*XR/test_2\.png\. Paths are relative to"):
        load_patches(path, "test", ["XR"])
    assert len(patch_cases(path, "training")) == 8


def test_listed_twice(tmp_path: Path) -> None:
    content = make_patches()
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
    assert patch_labels(write(tmp_path, make_patches())) == {"other": 0, "mitotic": 1}


@pytest.mark.parametrize(
    "labels", [None, ["a", "b"], {"0": "a"}, {"0": "a", "1": "a"}, {"1": "a", "2": "b"}, {"0": None, "1": "a"}]
)
def test_bad_names_of_the_classes(tmp_path: Path, labels: Any) -> None:
    path = write(tmp_path, make_patches() | {"labels": labels})
    with pytest.raises(DataError, match=r"dataset\.json: 'labels' is .*expected the names of the two classes"):
        patch_labels(path)


def make_regions(domains: tuple[str, ...] = ("CS", "XR")) -> dict[str, Any]:
    """Three regions of each domain in each split, the last without a figure, and two without labels."""
    content: dict[str, Any] = {"labels": {"0": "non_mitotic", "1": "mitotic"}, "box_mode": "xyxy"}
    for split in SPLITS:
        content[split] = [
            {"image": f"{d}/{split}_{i}.tiff", "box": boxes, "label": [0, 1][: len(boxes)], "domain": d}
            | {"slide": f"{split}_{i}", "width": 100, "height": 80}
            for d in domains
            for i, boxes in enumerate([BOXES, BOXES[::-1], []])
        ]
    content["unlabelled"] = [
        {"image": f"GT450/{i}.tiff", "domain": "GT450", "slide": f"{i}", "labelled": False} for i in range(2)
    ]
    return content


def region_cases(*arguments: Any) -> list[str]:
    return [region["case"] for region in load_regions(*arguments)]


def test_regions_in_the_order_of_the_list(tmp_path: Path) -> None:
    content = make_regions()
    content["test"][4]["mpp"] = 0.23
    path = write(tmp_path, content | {"mpp": 0.25})
    regions = load_regions(path, "test")
    assert [r["case"] for r in regions] == [f"{d}/test_{i}.tiff" for d in ("CS", "XR") for i in range(3)]
    assert [r["mpp"] for r in regions] == [0.25] * 4 + [0.23, 0.25]
    assert regions[1] == {
        "image": str(tmp_path / "CS/test_1.tiff"),
        "case": "CS/test_1.tiff",
        "box": BOXES[::-1],
        "label": [0, 1],
        "domain": "CS",
        "slide": "test_1",
        "mpp": 0.25,
        "labelled": True,
    }
    assert regions[2]["box"] == regions[2]["label"] == []


def test_unlabelled_ones_are_in_no_split_and_have_no_boxes(tmp_path: Path) -> None:
    path = write(tmp_path, make_regions())
    assert all(domain_names(load_regions(path, split)) == ["CS", "XR"] for split in SPLITS)
    found = load_regions(path, "unlabelled")
    assert found[1] == {
        "image": str(tmp_path / "GT450/1.tiff"),
        "case": "GT450/1.tiff",
        "domain": "GT450",
        "slide": "1",
        "mpp": None,
        "labelled": False,
    }
    assert "GT450/0.tiff" not in region_cases(path, "test", None, True, ["CS"])


def test_a_list_that_need_not_be_there(tmp_path: Path) -> None:
    content = make_regions()
    path = write(tmp_path, content)
    assert load_regions(path, "unlabelled", optional=True) == load_regions(path, "unlabelled")
    for absent in ([], None):
        path = write(tmp_path, content | {"unlabelled": absent})
        assert load_regions(path, "unlabelled", optional=True) == []
        with pytest.raises(DataError, match="the list 'unlabelled' is "):
            load_regions(path, "unlabelled")


def test_domains_as_for_patches(tmp_path: Path) -> None:
    content = make_regions(("CS", "S360", "XR"))
    path = write(tmp_path, content)
    of_the_split = [f"CS/test_{i}.tiff" for i in range(3)]
    assert region_cases(path, "training", ["Aperio CS2"]) == [f"CS/training_{i}.tiff" for i in range(3)]
    unseen = [f"XR/{split}_{i}.tiff" for split in SPLITS for i in range(3)]
    assert region_cases(path, "test", ["CS", "XR"], True, ["CS", "S360"]) == of_the_split + unseen
    with pytest.raises(DataError, match=r"whole_unseen takes all regions of the domains .*model\.json"):
        load_regions(path, "test", None, True)
    with pytest.raises(DataError, match=r"there is no domain S60\. Known: CS, GT450, S360, XR"):
        load_regions(path, "test", ["S60"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box": [[1, 2, 3]] * 2}, r"entry 1 of 'test', CS/test_1.tiff: box 0, \[1, 2, 3\]: expected \[x1, y1, x2, y2"),
        ({"box": [BOXES[0], 7]}, r"box 1, 7: expected \[x1, y1, x2, y2\], four finite numbers"),
        ({"box": [BOXES[0], [1, 2, float("nan"), 4]]}, r"box 1, \[1, 2, NaN, 4\]: .*four finite numbers"),
        ({"box": [BOXES[0], [1, 2, float("inf"), 4]]}, "four finite numbers"),
        ({"box": [BOXES[0], [1, 2, "3", 4]]}, "four finite numbers"),
        ({"box": [BOXES[0], [10, 20, 10, 40]]}, r"box 1, \[10, 20, 10, 40\]: has no area: expected x1 < x2"),
        ({"box": [BOXES[0], [60, 60, 50, 50]]}, r"has no area.*Is it x, y, width, height\?"),
        ({"box": [BOXES[0], [-50, 20, 0, 70]]}, r"\[-50, 20, 0, 70\]: lies outside of its image of 100 × 80"),
        ({"box": [BOXES[0], [100, 20, 150, 70]]}, r"\[100, 20, 150, 70\]: lies outside of its image of 100 × 80"),
        ({"box": [BOXES[0], [20, 80, 70, 130]]}, "lies outside of its image of 100 × 80"),
        ({"box": None}, "its box and label are not both lists"),
        ({"label": 1}, "its box and label are not both lists"),
        ({"label": [1]}, "CS/test_1.tiff: has 2 boxes and 1 labels"),
        ({"label": [1, 2]}, r"box 1, .*: its label is 2, which is no known category. Expected 0 \(non_mitotic\), 1 "),
        ({"label": [True, 1]}, "box 0, .*: its label is true, which is no known category"),
        ({"label": ["mitotic", 1]}, 'its label is "mitotic", which is no known category'),
        ({"labelled": False}, "\"labelled\" is false: an image that nobody annotated.*the list \"unlabelled\""),
        ({"slide": ""}, "expected an image, a domain and a slide"),
        ({"domain": None}, "expected an image, a domain and a slide"),
        ({"image": 3}, "entry 1 of 'test': found .* expected an image, a domain and a slide"),
        ({"mpp": 0}, "'mpp' is 0, expected a number from 0.05 to 4"),
        ({"width": "100"}, "'width' is \"100\", expected a number above 0"),
        ({"image": "CS/../GT450/0.tiff"}, r"GT450/0.tiff is both in 'test' and in 'unlabelled'"),
        ({"image": "GT450/0.tiff"}, r"GT450/0.tiff is both in 'test' and in 'unlabelled'"),
        ({"image": "CS/test_0.tiff"}, r"'test' lists CS/test_0.tiff more than once \(1 such\). List each region once"),
    ],
)  # fmt: skip
def test_entries_that_cannot_be_meant(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    content = make_regions()
    content["test"][1] |= changes
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=r"dataset\.json: .*" + message):
        load_regions(path, "test")


@pytest.mark.parametrize("changes", [{"labelled": True}, {"labelled": None}, {"box": []}, {"label": []}])
def test_labelled_ones_among_the_unlabelled(tmp_path: Path, changes: dict[str, Any]) -> None:
    content = make_regions()
    content["unlabelled"][1] |= changes
    with pytest.raises(DataError, match=r"entry 1 of 'unlabelled', GT450/1.tiff: it is in \"unlabelled\", expected"):
        load_regions(write(tmp_path, content), "unlabelled")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box_mode": "xywh"}, '\'box_mode\' is "xywh", expected "xyxy"'),
        ({"box_mode": None}, "'box_mode' is null"),
        ({"mpp": -1}, "'mpp' is -1, expected a number from 0.05 to 4"),
        ({"labels": {"0": "a"}}, "'labels' is {'0': 'a'}, expected the names of the two classes"),
        ({"test": []}, r"the list 'test' is empty. It has 'training' \(6\)"),
        ({"test": [3]}, "entry 0 of 'test': found 3, expected an image"),
    ],
)
def test_wrong_datalists(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path, make_regions() | changes)
    with pytest.raises(DataError, match=message):
        load_regions(path, "test")


@pytest.mark.parametrize("key", ["image", "domain", "slide"])
@pytest.mark.parametrize("value", [".", "a\nb", "a\0b", "x" * 300])
def test_names_that_no_file_can_have(tmp_path: Path, key: str, value: str) -> None:
    for make, load in ((make_patches, load_patches), (make_regions, load_regions)):
        path = write(tmp_path, make())
        content = json.loads(path.read_text())
        content["test"][1][key] = value
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=rf"dataset\.json: entry 1 of 'test': {key} is .*, expected "):
            load(path, "test")


def test_a_box_outside_of_an_image_whose_size_only_the_file_tells(tmp_path: Path) -> None:
    path = write(tmp_path, make_regions())
    content = json.loads(path.read_text())
    entry = content["test"][0]
    entry |= {"width": None, "height": None, "box": [[10, 20, 60, 70]], "label": [0]}
    path.write_text(json.dumps(content))
    Image.new("RGB", (100, 80)).save(tmp_path / entry["image"])
    assert load_regions(path, "test")[0]["box"] == entry["box"]
    Image.new("RGB", (100, 20)).save(tmp_path / entry["image"])
    with pytest.raises(DataError, match=r"test_0.tiff: box 0, \[10, 20, 60, 70\]: lies outside of its image"):
        load_regions(path, "test")


def test_missing_files_of_regions(tmp_path: Path) -> None:
    path = write(tmp_path, make_regions(), missing=("CS/test_0.tiff", "XR/test_2.tiff"))
    with pytest.raises(DataError, match=r"2 of the 6 files listed in 'test' do not exist: .*CS/test_0.tiff"):
        load_regions(path, "test")
    assert len(load_regions(path, "validation")) == 6
    with pytest.raises(DataError, match=r"none.json: no such file. Expected a datalist of regions"):
        load_regions(tmp_path / "none.json", "test")
    path.write_text("{")
    with pytest.raises(DataError, match="not readable as JSON"):
        load_regions(path, "test")


def test_nothing_to_find(tmp_path: Path) -> None:
    content = make_regions()
    for entry in content["training"][3:] + content["validation"] + content["test"]:
        entry["label"] = [0] * len(entry["box"])
    path = write(tmp_path, content)
    with pytest.raises(
        DataError, match=r"in training, none of the 3 regions of the domain XR has a mitotic figure: a network would"
    ):
        load_regions(path, "training")
    assert len(load_regions(path, "training", ["CS"])) == 3
    with pytest.raises(
        DataError,
        match=r"in validation, none of the 6 regions of the domains CS \(3\), XR \(3\) has a mitotic figure: no score",
    ):
        load_regions(path, "validation")
    assert len(load_regions(path, "test")) == 6


def test_names_of_the_classes_of_regions(tmp_path: Path) -> None:
    assert region_labels(write(tmp_path, make_regions())) == {"non_mitotic": 0, "mitotic": 1}
    with pytest.raises(DataError, match=r"no such file\. Expected a datalist of regions"):
        region_labels(tmp_path / "none.json")


def test_synthetic_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blank = "shared.datasets.synthetic_histology.render_stains"
    monkeypatch.setattr(blank, lambda haematoxylin, *_: np.zeros((*haematoxylin.shape, 3), np.uint8))
    make_synthetic_histology(tmp_path, 3, 2, 1, label_all=False, processes=1)
    path = tmp_path / "tiles.json"
    assert region_labels(path) == {"non_mitotic": 0, "mitotic": 1}
    found = {split: load_regions(path, split) for split in (*SPLITS, "unlabelled")}
    assert {split: len(regions) for split, regions in found.items()} == dict.fromkeys(found, 3)
    assert domain_names(found["unlabelled"]) == ["GT450"]
    assert sum(1 in region["label"] for split in SPLITS for region in found[split]) > 3


def test_regions_of_another_scale_are_refused(tmp_path: Path) -> None:
    content = make_regions()
    content["mpp"] = 0.25
    assert load_regions(write(tmp_path, content), "training", mpp=0.23)
    with pytest.raises(DataError, match=r"has 0.25 µm a pixel, and the network is for 0.5"):
        load_regions(write(tmp_path, content), "training", mpp=0.5)
    content["training"][-1]["mpp"] = 0.3
    path = write(tmp_path, content)
    assert load_regions(path, "training")
    with pytest.raises(DataError, match=f"{content['training'][-1]['image']} has 0.3 µm"):
        load_regions(path, "training", mpp=0.25)


def test_the_size_of_a_patchs_pixels(tmp_path: Path) -> None:
    content = make_patches()
    path = write(tmp_path, content)
    assert (patch_mpp(path), patch_mpp(path, 0.5)) == (0.25, 0.5)
    assert patch_mpp(write(tmp_path, content | {"mpp": 0.46})) == 0.46
    with pytest.raises(DataError, match=r"'mpp' is 40, expected a number from 0\.05 to 4"):
        patch_mpp(write(tmp_path, content | {"mpp": 40}))
