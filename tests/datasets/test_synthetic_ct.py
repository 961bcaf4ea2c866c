from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from commands import run
from scipy.spatial import cKDTree

from shared.datasets.ct_cases import BTCV_LABELS, PAPER_VOXEL_SHARES
from shared.datasets.synthetic_ct import ORIENTATIONS, make_synthetic_ct, synthetic_ct_case
from shared.utils import DataError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "ct"
    make_synthetic_ct(folder, cases=6, seed=5, processes=1, test_cases=2)
    return folder


@pytest.fixture(scope="module")
def pairs(data_dir: Path) -> list[tuple[nib.Nifti1Image, nib.Nifti1Image]]:
    datalist = json.loads((data_dir / "dataset.json").read_text())
    items = datalist["training"] + datalist["validation"] + datalist["test"]
    return [(nib.load(data_dir / item["image"]), nib.load(data_dir / item["label"])) for item in items]


@pytest.fixture(scope="module")
def organs(pairs: list) -> list[dict[str, np.ndarray]]:
    """For each case the world coordinates (x right, y front, z head, mm) of the voxels of each organ."""
    cases = []
    for _, label in pairs:
        data = np.asarray(label.dataobj)
        cases.append(
            {k: nib.affines.apply_affine(label.affine, np.argwhere(data == v)) for k, v in BTCV_LABELS.items()}
        )
    return cases


def volumes(pairs: list) -> np.ndarray:
    """Volume in ml of each organ (columns, ascending id) in each case (rows)."""
    counts = [np.bincount(np.asarray(label.dataobj).ravel(), minlength=14)[1:] for _, label in pairs]
    return np.array([c * abs(np.linalg.det(p[1].affine)) / 1000 for c, p in zip(counts, pairs, strict=True)])


def test_every_case_holds_all_organs_at_a_believable_size(pairs: list) -> None:
    assert volumes(pairs).min() > 0.5
    assert {np.asarray(label.dataobj).max() for _, label in pairs} == {13}


def test_shares_are_within_a_factor_of_two_of_the_real_ones(pairs: list) -> None:
    amounts = volumes(pairs)
    shares = (100 * amounts / amounts.sum(axis=1, keepdims=True)).mean(axis=0)
    for name, share in zip(BTCV_LABELS, shares, strict=True):
        assert PAPER_VOXEL_SHARES[name] / 2 <= share <= 2 * PAPER_VOXEL_SHARES[name], name


def test_organs_lie_on_their_side(organs: list) -> None:
    for case in organs:
        centre = {name: points.mean(axis=0) for name, points in case.items()}
        middle = (centre["right_kidney"][0] + centre["left_kidney"][0]) / 2
        for name in ("liver", "right_kidney", "gallbladder", "inferior_vena_cava", "right_adrenal_gland"):
            assert centre[name][0] > middle, name
        for name in ("spleen", "stomach", "left_kidney", "aorta", "left_adrenal_gland"):
            assert centre[name][0] < middle, name


def test_organs_have_their_neighbours(organs: list) -> None:
    for case in organs:
        x, y, z = ({name: points.mean(axis=0)[axis] for name, points in case.items()} for axis in range(3))
        assert x["inferior_vena_cava"] - x["aorta"] > 15
        for side in ("right", "left"):
            assert z[f"{side}_adrenal_gland"] > z[f"{side}_kidney"]
            assert y[f"{side}_kidney"] < y["pancreas"]
        assert z["oesophagus"] > z["pancreas"]
        assert y["gallbladder"] > y["right_kidney"]
        assert z["gallbladder"] < z["liver"]
        # The veins run from the spleen to the liver and touch the pancreas on the way.
        veins = case["portal_and_splenic_veins"]
        for name, reach in (("pancreas", 6), ("liver", 8), ("spleen", 45)):
            assert gap(veins, case[name]) < reach, name
        assert gap(case["oesophagus"], case["stomach"]) < 8


def gap(a: np.ndarray, b: np.ndarray) -> float:
    """Least distance in mm between points of a and of b."""
    return float(cKDTree(b).query(a)[0].min())


def test_grids_vary_and_image_and_label_share_them(pairs: list) -> None:
    for image, label in pairs:
        np.testing.assert_array_equal(image.affine, label.affine)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
        assert image.shape == label.shape
        assert image.get_data_dtype() == np.int16
        assert label.get_data_dtype() == np.uint8
        in_plane, other, between = nib.as_closest_canonical(image).header.get_zooms()
        assert in_plane == other
        assert 0.7 <= in_plane <= 1.0
        assert 2 <= between <= 5
        assert 195 <= nib.as_closest_canonical(image).shape[2] * between <= 285
        assert "".join(nib.aff2axcodes(image.affine)) in ORIENTATIONS
    assert len({nib.aff2axcodes(image.affine) for image, _ in pairs}) > 2
    assert len({image.header.get_zooms() for image, _ in pairs}) == len(pairs)


def test_densities_are_those_of_a_body_in_air(pairs: list) -> None:
    spreads = []
    for image, label in pairs:
        hu = np.asarray(nib.as_closest_canonical(image).dataobj)
        organ = np.asarray(nib.as_closest_canonical(label).dataobj)
        assert hu.min() >= -1024
        assert (hu > 350).mean() > 0.001  # bone
        for corner in (hu[:8, -8:], hu[-8:, -8:]):
            assert np.median(corner) < -950
        assert -20 < np.median(hu[organ == 6]) < 160
        # Slices are stored from the feet to the head: lung lies in the uppermost.
        lung = (hu > -950) & (hu < -700)
        assert lung[..., -1].sum() > 5 * lung[..., 0].sum()
        spreads.append(np.median(hu[organ == 8]))
    assert np.ptp(spreads) > 50  # the contrast phase changes the aorta


def test_same_seed_same_bytes_whatever_the_processes_and_the_number_of_cases(data_dir: Path, tmp_path: Path) -> None:
    make_synthetic_ct(tmp_path, cases=3, seed=5, processes=2)
    written = {(p.parent.name[:6], p.name): p.read_bytes() for p in sorted(tmp_path.rglob("*.nii.gz"))}
    assert len(written) == 6
    for kind, name in written:
        # The third case is for testing among three and for training among six: another folder, the same bytes.
        before = next(data_dir.glob(f"{kind}T?/{name}"))
        assert written[kind, name] == before.read_bytes(), name


def test_another_seed_gives_another_body(pairs: list) -> None:
    image, label = synthetic_ct_case(6)
    assert all(image.shape != other.shape or (image.affine != other.affine).any() for other, _ in pairs)
    amounts = volumes([*pairs, (image, label)])
    assert len({tuple(row) for row in amounts.round(1)}) == len(amounts)
    assert amounts[:, 6].std() / amounts[:, 6].mean() > 0.1


def test_datalist_splits_are_disjoint_and_marked_synthetic(data_dir: Path) -> None:
    datalist = json.loads((data_dir / "dataset.json").read_text())
    assert datalist["synthetic"] is True
    assert {int(value): name for value, name in datalist["labels"].items()} == {
        0: "background",
        **{value: name for name, value in BTCV_LABELS.items()},
    }
    names = [item["image"] for split in ("training", "validation", "test") for item in datalist[split]]
    assert len(set(names)) == len(names) == 6
    assert [len(datalist[split]) for split in ("training", "validation", "test")] == [3, 1, 2]


@pytest.mark.parametrize("test_cases", [0, 9])
def test_one_case_at_least_is_left_for_training(tmp_path: Path, test_cases: int) -> None:
    with pytest.raises(DataError, match=rf"^test_cases is {test_cases}, expected a whole number from 1 to 8"):
        make_synthetic_ct(tmp_path, cases=10, test_cases=test_cases)


def test_the_same_data_set_may_be_written_again_but_no_other(tmp_path: Path, data_dir: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.json: already describes another data set.*Choose a new folder"):
        make_synthetic_ct(data_dir, cases=6, seed=6, test_cases=2)
    foreign = tmp_path / "imagesTr" / "patient.nii.gz"
    foreign.parent.mkdir()
    foreign.touch()
    with pytest.raises(DataError, match=r"already holds imagesTr/patient\.nii\.gz, expected an empty folder"):
        make_synthetic_ct(tmp_path, cases=3)
    assert list(tmp_path.rglob("*.gz")) == [foreign]


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cases is 2, expected a whole number of 3 or above"):
        make_synthetic_ct(tmp_path, cases=2)
    for name, value, least in (("seed", -1, 0), ("seed", True, 0), ("processes", 0, 1)):
        with pytest.raises(DataError, match=f"{name} is {value}, expected a whole number of {least} or above"):
            make_synthetic_ct(tmp_path, **{name: value})
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file: found a file, expected a folder"):
        make_synthetic_ct(tmp_path / "file")
    with pytest.raises(DataError, match="cannot be written to"):
        make_synthetic_ct("/proc/nowhere/ct", cases=3, processes=1)


def test_command_line_explains_itself_and_fails_in_one_line(tmp_path: Path) -> None:
    command = (ROOT / "scripts/make_synthetic.py", "ct")
    shown = run(*command, "--help", env={**os.environ, "PAGER": "cat"})
    assert shown.returncode == 0
    assert "dataset.json" in shown.stdout + shown.stderr
    failed = run(*command, f"--output_dir={tmp_path}", "--cases=1")
    assert failed.returncode == 1
    assert failed.stderr.strip() == ("Error: --cases is 1, expected a whole number of 3 or above.")


@pytest.mark.slow
def test_a_voxel_classifier_does_not_solve_the_task(tmp_path: Path) -> None:
    """The difficulty is fixed here: intensity and place alone must not tell the organs apart."""
    make_synthetic_ct(tmp_path / "ct", cases=12, seed=0, processes=1)
    options = ["--data_dir", tmp_path / "ct", "--output", tmp_path / "scores.json"]
    run(ROOT / "scripts/benchmark.py", "voxel_classifier", *options, python=sys.executable).check_returncode()
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert list(scores["dice"]) == list(BTCV_LABELS)
    assert scores["mean"] == pytest.approx(np.mean(list(scores["dice"].values())))
    assert scores["mean"] <= 0.4
    # It is an honest attempt all the same: the easiest organ is well above chance.
    assert scores["dice"]["liver"] > 0.5
