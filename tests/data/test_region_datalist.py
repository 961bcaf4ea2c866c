from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.data import domain_names, load_regions, region_labels, tile_items
from shared.datasets import make_synthetic_histology
from shared.utils import DataError

SPLITS = ("training", "validation", "test")
BOXES = [[10, 20, 60, 70], [-5, 0.5, 45, 50.5]]


def make_content(domains: tuple[str, ...] = ("CS", "XR")) -> dict[str, Any]:
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


def write(folder: Path, content: dict[str, Any], missing: tuple[str, ...] = ()) -> Path:
    for entry in (e for part in content.values() if isinstance(part, list) for e in part if isinstance(e, dict)):
        if isinstance(entry.get("image"), str) and entry["image"] not in ("", *missing):
            (folder / entry["image"]).parent.mkdir(exist_ok=True)
            (folder / entry["image"]).touch()
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder / "dataset.json"


def cases(*arguments: Any) -> list[str]:
    return [region["case"] for region in load_regions(*arguments)]


def test_a_split_in_the_order_of_the_list(tmp_path: Path) -> None:
    content = make_content()
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
    path = write(tmp_path, make_content())
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
    assert "GT450/0.tiff" not in cases(path, "test", None, True, ["CS"])


def test_a_list_that_need_not_be_there(tmp_path: Path) -> None:
    content = make_content()
    path = write(tmp_path, content)
    assert load_regions(path, "unlabelled", optional=True) == load_regions(path, "unlabelled")
    for absent in ([], None):
        path = write(tmp_path, content | {"unlabelled": absent})
        assert load_regions(path, "unlabelled", optional=True) == []
        with pytest.raises(DataError, match="the list 'unlabelled' is "):
            load_regions(path, "unlabelled")


def test_domains_as_for_patches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = make_content(("CS", "S360", "XR"))
    path = write(tmp_path, content)
    of_the_split = [f"CS/test_{i}.tiff" for i in range(3)]
    assert cases(path, "training", ["Aperio CS2"]) == [f"CS/training_{i}.tiff" for i in range(3)]
    unseen = [f"XR/{split}_{i}.tiff" for split in SPLITS for i in range(3)]
    assert cases(path, "test", ["CS", "XR"], True, ["CS", "S360"]) == of_the_split + unseen
    with pytest.raises(DataError, match=r"whole_unseen takes all regions of the domains .*model\.json"):
        load_regions(path, "test", None, True)
    with pytest.raises(DataError, match=r"there is no domain S60\. Known: CS, GT450, S360, XR"):
        load_regions(path, "test", ["S60"])
    assert not caplog.records
    content["test"][0]["slide"] = "training_1"
    load_regions(write(tmp_path, content), "training")
    assert "share 1 slides, such as training_1" in caplog.text


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
        ({"mpp": 0}, "'mpp' is 0, expected a number above 0"),
        ({"width": "100"}, "'width' is \"100\", expected a number above 0"),
        ({"image": "CS/training_0.tiff"}, r"CS/training_0.tiff is both in 'training' and in 'test'"),
        ({"image": "CS/../CS/training_0.tiff"}, r"CS/training_0.tiff is both in 'training' and in 'test'"),
        ({"image": "GT450/0.tiff"}, r"GT450/0.tiff is both in 'test' and in 'unlabelled'"),
        ({"image": "CS/test_0.tiff"}, r"'test' lists CS/test_0.tiff more than once \(1 such\). List each region once"),
    ],
)  # fmt: skip
def test_entries_that_cannot_be_meant(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    content = make_content()
    content["test"][1] |= changes
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=r"dataset\.json: .*" + message):
        load_regions(path, "test")


@pytest.mark.parametrize("changes", [{"labelled": True}, {"labelled": None}, {"box": []}, {"label": []}])
def test_labelled_ones_among_the_unlabelled(tmp_path: Path, changes: dict[str, Any]) -> None:
    content = make_content()
    content["unlabelled"][1] |= changes
    with pytest.raises(DataError, match=r"entry 1 of 'unlabelled', GT450/1.tiff: it is in \"unlabelled\", expected"):
        load_regions(write(tmp_path, content), "unlabelled")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box_mode": "xywh"}, '\'box_mode\' is "xywh", expected "xyxy"'),
        ({"box_mode": None}, "'box_mode' is null"),
        ({"mpp": -1}, "'mpp' is -1, expected the size of a pixel"),
        ({"labels": {"0": "a"}}, "'labels' is {'0': 'a'}, expected the names of the two classes"),
        ({"test": []}, r"the list 'test' is empty. It has 'training' \(6\)"),
        ({"test": [3]}, "entry 0 of 'test': found 3, expected an image"),
    ],
)
def test_wrong_datalists(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path, make_content() | changes)
    with pytest.raises(DataError, match=message):
        load_regions(path, "test")


def test_missing_files(tmp_path: Path) -> None:
    path = write(tmp_path, make_content(), missing=("CS/test_0.tiff", "XR/test_2.tiff"))
    with pytest.raises(DataError, match=r"2 of the 6 files listed in 'test' do not exist: .*CS/test_0.tiff"):
        load_regions(path, "test")
    assert len(load_regions(path, "validation")) == 6
    with pytest.raises(DataError, match=r"none.json: no such file. Expected a datalist of regions"):
        load_regions(tmp_path / "none.json", "test")
    path.write_text("{")
    with pytest.raises(DataError, match="not readable as JSON"):
        load_regions(path, "test")


def test_nothing_to_find(tmp_path: Path) -> None:
    content = make_content()
    for entry in content["training"][3:] + content["validation"] + content["test"]:
        entry["label"] = [0] * len(entry["box"])
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=r"in training, the 3 regions of the domain XR have no mitotic figure"):
        load_regions(path, "training")
    assert len(load_regions(path, "training", ["CS"])) == 3
    with pytest.raises(DataError, match=r"in validation, none of the 6 regions has a mitotic figure"):
        load_regions(path, "validation")
    assert len(load_regions(path, "test")) == 6


def test_names_of_the_classes(tmp_path: Path) -> None:
    assert region_labels(write(tmp_path, make_content())) == {"non_mitotic": 0, "mitotic": 1}
    with pytest.raises(DataError, match=r"no such file\. Expected a datalist of regions"):
        region_labels(tmp_path / "none.json")


def test_an_item_for_each_figure_and_for_tissue_without(tmp_path: Path) -> None:
    path = write(tmp_path, make_content())
    regions = load_regions(path, "training")
    items = tile_items(regions + load_regions(path, "unlabelled"), empty_per_region=2)
    assert Counter((i["domain"], i["kind"]) for i in items) == {
        **{(d, kind): n for d in ("CS", "XR") for kind, n in (("mitotic", 2), ("non_mitotic", 2), ("empty", 6))},
        ("GT450", "unlabelled"): 2,
    }
    assert [(i["kind"], i["center"]) for i in items[:4]] == [
        ("non_mitotic", (35, 45)),
        ("mitotic", (20, 25.5)),
        ("empty", None),
        ("empty", None),
    ]
    assert all(regions[0].items() <= item.items() for item in items[:4])
    assert [(i["labelled"], i["center"], "box" in i) for i in items[-2:]] == [(False, None, False)] * 2
    assert Counter(i["kind"] for i in tile_items(regions, 0)) == {"mitotic": 4, "non_mitotic": 4}
    with pytest.raises(ValueError, match="empty_per_region must be 0 or more, got -1"):
        tile_items(regions, -1)


def test_synthetic_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "shared.datasets.synthetic_histology._draw", lambda size, *_: np.zeros((size, size, 3), np.uint8)
    )
    make_synthetic_histology(tmp_path, 3, 2, 1, label_all=False, processes=1)
    path = tmp_path / "tiles.json"
    assert region_labels(path) == {"non_mitotic": 0, "mitotic": 1}
    found = {split: load_regions(path, split) for split in (*SPLITS, "unlabelled")}
    assert {split: len(regions) for split, regions in found.items()} == dict.fromkeys(found, 3)
    assert domain_names(found["unlabelled"]) == ["GT450"]
    assert sum(1 in region["label"] for split in SPLITS for region in found[split]) > 3


def test_regions_of_another_scale_are_refused(tmp_path: Path) -> None:
    content = make_content()
    content["mpp"] = 0.25
    assert load_regions(write(tmp_path, content), "training", mpp=0.23)
    with pytest.raises(DataError, match=r"has 0.25 µm a pixel, and the network is for 0.5"):
        load_regions(write(tmp_path, content), "training", mpp=0.5)
    content["training"][-1]["mpp"] = 0.3
    path = write(tmp_path, content)
    assert load_regions(path, "training")
    with pytest.raises(DataError, match=f"{content['training'][-1]['image']} has 0.3 µm"):
        load_regions(path, "training", mpp=0.25)
