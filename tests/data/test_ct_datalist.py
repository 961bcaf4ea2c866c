from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.data import list_inputs, load_datalist
from shared.utils import DataError

LABELS = {"spleen": 1, "right_kidney": 2}


def entry(name: str) -> dict[str, str]:
    return {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"}


def write(folder: Path, **changes: Any) -> Path:
    """A datalist of seven training cases, two validation and three test cases, and its (empty) files."""
    content: dict[str, Any] = {
        "name": "toy",
        "labels": {"0": "background", "1": "Spleen", "2": "right kidney"},
        "training": [entry(f"case{i}") for i in range(7)],
        "validation": [entry(f"case{i}") for i in range(7, 9)],
        "test": [entry(f"case{i}") for i in range(9, 12)],
    }
    for split in ("training", "validation", "test"):
        for files in content[split]:
            for file in files.values():
                (folder / file).parent.mkdir(exist_ok=True)
                (folder / file).touch()
    path = folder / "dataset.json"
    path.write_text(json.dumps(content | changes))
    return path


def names(cases: list[dict[str, Any]]) -> list[str]:
    return [c["case"] for c in cases]


def test_cases_have_full_paths_and_a_name(tmp_path: Path) -> None:
    cases = load_datalist(write(tmp_path), "test", labels=LABELS)
    assert names(cases) == ["case9", "case10", "case11"]
    assert cases[0]["image"] == str(tmp_path / "imagesTr/case9.nii.gz")
    assert cases[0]["label"] == str(tmp_path / "labelsTr/case9.nii.gz")


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for s in ("s1", "s2"):
        (tmp_path / s).mkdir()
        (tmp_path / s / "ct.nii.gz").touch()
    path = write(tmp_path, test=[{"image": f"./{s}/ct.nii.gz", "label": f"{s}/ct.nii.gz"} for s in ("s1", "s2")])
    assert names(load_datalist(path, "test")) == ["s1_ct", "s2_ct"]


def test_the_own_name_of_a_case_comes_first(tmp_path: Path) -> None:
    for s in ("s1", "s2"):
        (tmp_path / s).mkdir()  # which MONAI would make the name a path of
        (tmp_path / s / "ct.nii.gz").touch()
    test = [{"case": s, "image": f"{s}/ct.nii.gz", "label": f"{s}/ct.nii.gz"} for s in ("s1", "s2")]
    path = write(tmp_path, test=[*test, entry("case9")], excluded=["s3"])
    assert names(load_datalist(path, "test")) == ["s1", "s2", "case9"]
    # validation and test may be the same cases, and one name is not for two images
    path = write(tmp_path, test=test, validation=test)
    assert names(load_datalist(path, "validation")) == ["s1", "s2"]
    for changes in (
        {"validation": [{**entry("case8"), "case": "s2"}]},
        {"test": [*test, {**entry("case8"), "case": "s2"}]},
    ):
        with pytest.raises(DataError, match=r"s2/ct.nii.gz .*case8.nii.gz|case8.nii.gz .*s2/ct.nii.gz") as error:
            load_datalist(write(tmp_path, **{"test": test} | changes), "test")
        assert "are both the case s2. Give each a name of its own" in str(error.value)


def test_folds_share_out_the_pool_and_leave_the_test_split(tmp_path: Path) -> None:
    path = write(tmp_path)
    pool = {f"case{i}" for i in range(9)}
    parts = []
    for fold in range(4):
        validation = names(load_datalist(path, "validation", fold, 4))
        training = names(load_datalist(path, "training", fold, 4))
        assert len(validation) in (2, 3)
        assert sorted(validation + training) == sorted(pool)
        parts += validation
        assert names(load_datalist(path, "test", fold, 4)) == ["case9", "case10", "case11"]
    assert sorted(parts) == sorted(pool)
    assert parts != [name for fold in range(4) for name in sorted(pool)[fold::4]]  # shuffled


def test_folds_depend_on_the_cases_alone(tmp_path: Path) -> None:
    first = names(load_datalist(write(tmp_path), "validation", 1, 3))
    everything = [entry(f"case{i}") for i in reversed(range(9))]
    assert names(load_datalist(write(tmp_path, training=everything, validation=[]), "validation", 1, 3)) == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": []}, r"the list 'test' is empty\. It has 'training' \(7\), 'validation' \(2\), 'test' \(0\)"),
        ({"test": {"image": 1}}, "the list 'test' is not a list"),
        ({"test": ["imagesTr/case9.nii.gz"]}, "entry 0 of 'test' is .* names no file under 'image'"),
        ({"test": [{"image": "imagesTr/case9.nii.gz"}]}, "names no file under 'label'"),
        ({"test": [entry("case9"), entry("case10"), entry("case9")]}, "2 entries are the case .*case9"),
        ({"test": [{**entry("case9"), "case": "a"}, {**entry("case9"), "case": "a"}]}, "2 entries are the case a"),
        (
            {"test": [{**entry("case9"), "case": "a/b"}]},
            "entry 0 of 'test': case is 'a/b', expected what can be",
        ),
        ({"test": [{**entry("case9"), "case": ".."}]}, "case is '..', expected"),
        ({"test": [{**entry("case9"), "case": 9}]}, "case is 9, expected"),
        ({"test": [entry(f"gone{i}") for i in range(4)]}, r"8 of the 8 files listed in test do not .*gone2\S*, \.\.\."),
        (
            {"labels": {"0": "background", "1": "liver", "2": "right kidney"}},
            "label 1 is liver in the .* and spleen in",
        ),
        (
            {"labels": {"5": "Spleen", "7": "right-kidney", "8": "liver"}},
            r"label 1 is nothing .* \(--label_ids \"\{'spleen': 5, 'right_kidney': 7\}\"\), or correct the datalist",
        ),
        ({"labels": {"1": "spleen"}}, "label 2 is nothing in the datalist and right_kidney in"),
        ({"labels": {"background": 0, "spleen": 1}}, "Expected the name of each label id"),
    ],
)
def test_bad_datalists(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(DataError, match=message) as error:
        load_datalist(path, "test", labels=LABELS)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("key", ["image", "label", "case"])
@pytest.mark.parametrize("value", ["", " ", ".", "./", "a\nb", "a\0b", "x" * 300, 5, None])
def test_names_that_no_file_can_have(tmp_path: Path, key: str, value: Any) -> None:
    path = write(tmp_path, test=[entry("case9"), entry("case10") | {key: value}])
    with pytest.raises(DataError, match=r"dataset\.json: entry 1 of 'test'.*[Ee]xpected") as error:
        load_datalist(path, "test")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 900


def test_with_ids_of_the_files_it_is_these_that_the_datalist_has(tmp_path: Path) -> None:
    path = write(tmp_path, labels={"0": "background", "2": "kidney_right", "3": "kidney_left", "900": "Milz"})
    label_ids = {"spleen": 900, "right_kidney": [2]}
    assert names(load_datalist(path, "test", labels=LABELS, label_ids=label_ids)) == ["case9", "case10", "case11"]
    with pytest.raises(
        DataError, match=r"label_ids` has \{'spleen': 5\}, which .* own labels have not: \{2: 'kidney_r"
    ):
        load_datalist(path, "test", labels=LABELS, label_ids=label_ids | {"spleen": 5})
    with pytest.raises(DataError, match=r"label_ids has no 'right_kidney'"):
        load_datalist(write(tmp_path, labels=None), "test", labels=LABELS, label_ids={"spleen": 5})


def test_at_most_five_missing_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, test=[entry(f"gone{i}") for i in range(4)])
    with pytest.raises(DataError) as error:
        load_datalist(path, "test")
    assert str(error.value).count("gone") == 5


@pytest.mark.parametrize(("fold", "folds"), [(0, 1), (3, 3), (-1, 3), (0, 10)])
def test_impossible_folds(tmp_path: Path, fold: int, folds: int) -> None:
    with pytest.raises(DataError, match=rf"fold {fold} of {folds} cannot be made of the 9 .* from 2 to 9"):
        load_datalist(write(tmp_path), "training", fold, folds)


def test_fold_and_folds_go_together(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Set both, or neither"):
        load_datalist(write(tmp_path), "training", fold=1)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_datalist_with_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    for name in ("ä.nii.gz", "label.nii.gz"):
        (tmp_path / name).touch()
    path.write_text('{"test": [{"image": "ä.nii.gz", "label": "label.nii.gz"}]}', encoding=encoding)
    assert [case["image"] for case in load_datalist(path, "test")] == [str(tmp_path / "ä.nii.gz")]
    assert [entry["image"] for entry in list_inputs(path)] == [str(tmp_path / "ä.nii.gz")]
