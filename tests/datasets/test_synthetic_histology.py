from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import run
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from shared.data import SPLITS
from shared.datasets.histology_entries import count_patches
from shared.datasets.synthetic_histology import (
    IMPOSTER_KINDS,
    MITOTIC_KINDS,
    SCANNER_PROFILES,
    ScannerProfile,
    make_synthetic_histology,
    render_stains,
)
from shared.utils import DataError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "histology"
    make_synthetic_histology(folder, slides=4, patches_per_slide=25, tiles_per_slide=1, seed=4, processes=1)
    return folder


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def listed(datalist: dict) -> list[dict]:
    return [item for split in SPLITS for item in datalist[split]]


@pytest.fixture(scope="module")
def patches(data_dir: Path) -> list[dict]:
    """The items of the datalist with their pixels, (64, 64, 3), as `pixels`."""
    items = listed(read(data_dir / "dataset.json"))
    return [{**item, "pixels": np.asarray(Image.open(data_dir / item["image"]))} for item in items]


@pytest.fixture(scope="module")
def tiles(data_dir: Path) -> list[dict]:
    items = listed(read(data_dir / "tiles.json"))
    return [{**item, "pixels": np.asarray(Image.open(data_dir / item["image"]))} for item in items]


def haematoxylin(pixels: np.ndarray, scanner: str) -> np.ndarray:
    """The stain's concentration by inverting the scanner's profile, (H, W); the slide's own variation is ignored."""
    profile = SCANNER_PROFILES[scanner]
    light = (np.clip(pixels, 1, 255) / profile.white) ** profile.gamma
    stains = np.array([profile.haematoxylin, profile.eosin])
    return (-np.log10(np.minimum(light, 1)) @ np.linalg.pinv(stains))[..., 0]


def test_a_pixel_is_what_beer_and_lambert_say() -> None:
    rng = np.random.default_rng(0)
    h, e = rng.uniform(0, 2, (3, 4)), rng.uniform(0, 1.5, (3, 4))
    for profile in SCANNER_PROFILES.values():
        plain = replace(profile, blur=0, sharpening=0, noise=0, jpeg_quality=None)
        pixels = render_stains(h, e, plain, rng)
        assert pixels.dtype == np.uint8
        for row in range(3):
            for column in range(4):
                for c in range(3):
                    absorbance = h[row, column] * profile.haematoxylin[c] + e[row, column] * profile.eosin[c]
                    expected = profile.white[c] * (10.0**-absorbance) ** (1 / profile.gamma)
                    assert pixels[row, column, c] == pytest.approx(expected, abs=0.51)


def test_optics_blur_light_and_not_grey_levels() -> None:
    h = np.zeros((41, 41))
    h[:, 20:] = 2
    profile = ScannerProfile((0.8, 0.8, 0.8), (0.1, 0.5, 0.2), (250, 250, 250), 2.0, 2.0, 0, 0, None)
    seen = render_stains(h, np.zeros_like(h), profile, np.random.default_rng(0))[..., 0]
    expected = 250 * np.sqrt(gaussian_filter(10 ** -(0.8 * h), 2))
    assert np.abs(seen - expected).max() < 0.6
    sharpened = render_stains(h, np.zeros_like(h), replace(profile, sharpening=1), np.random.default_rng(0))[..., 0]
    assert np.ptp(np.diff(sharpened[20].astype(int))) > np.ptp(np.diff(seen[20].astype(int)))


def test_noise_and_compression_have_their_measure() -> None:
    flat = np.full((64, 64), 0.5)
    profile = replace(SCANNER_PROFILES["XR"], noise=3, jpeg_quality=None)
    seen = render_stains(flat, flat, profile, np.random.default_rng(0))
    assert seen.std(axis=(0, 1)) == pytest.approx(3, rel=0.1)
    rough = render_stains(flat, flat, replace(profile, jpeg_quality=30), np.random.default_rng(0))
    assert 0 < np.abs(seen.astype(int) - rough).mean() < 6


def test_the_datalist_is_marked_synthetic_and_complete(data_dir: Path, patches: list[dict]) -> None:
    datalist = read(data_dir / "dataset.json")
    assert datalist["name"] == "synthetic_histology"
    assert datalist["synthetic"] is True
    assert datalist["seed"] == 4
    assert datalist["labels"] == {"0": "non_mitotic", "1": "mitotic"}
    assert {patch["pixels"].shape for patch in patches} == {(64, 64, 3)}
    assert {patch["domain"] for patch in patches} == {"XR", "S360", "CS", "GT450"}
    assert {patch["kind"] for patch in patches} == {*MITOTIC_KINDS, *IMPOSTER_KINDS}
    assert all(patch["label"] == (patch["kind"] in MITOTIC_KINDS) for patch in patches)
    written = {str(path.relative_to(data_dir)) for path in data_dir.rglob("*.png")}
    assert written == {
        item["image"] for name in ("dataset", "tiles") for item in listed(read(data_dir / f"{name}.json"))
    }


def test_no_slide_is_in_two_splits_and_the_shares_hold(data_dir: Path) -> None:
    datalist, tiles = read(data_dir / "dataset.json"), read(data_dir / "tiles.json")
    split_of = defaultdict(set)
    for split in SPLITS:
        for item in datalist[split] + tiles[split]:
            split_of[item["slide"]].add(split)
            assert item["slide"].startswith(item["domain"] + "_")
            number = item["slide"].rpartition("_")[2]
            assert f"/{item['domain']}/slide_{number}/" in item["image"]
    assert len(split_of) == 16
    assert {len(splits) for splits in split_of.values()} == {1}
    rows = count_patches({split: datalist[split] for split in SPLITS})
    assert {(r["split"], r["slides"], r["negative"], r["positive"]) for r in rows} == {
        ("training", 2, 30, 20),
        ("validation", 1, 15, 10),
        ("test", 1, 15, 10),
    }


def test_the_figure_is_dark_and_in_the_middle(patches: list[dict]) -> None:
    y, x = np.mgrid[:64, :64] - 31.5
    inner, outer = np.hypot(x, y) < 20, np.hypot(x, y) > 26
    offsets, excess = [], []
    for patch in patches:
        stain = np.maximum(haematoxylin(patch["pixels"], patch["domain"]), 0)
        dark = np.where(inner, np.maximum(stain - np.median(stain) - 0.3, 0), 0)
        offsets.append([(dark * x).sum() / dark.sum(), (dark * y).sum() / dark.sum()])
        excess.append(np.percentile(stain[inner], 95) - np.percentile(stain[outer], 50))
    assert np.mean(excess) > 0.9
    assert np.percentile(excess, 2) > 0.3
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.5
    assert np.percentile(np.hypot(*np.transpose(offsets)), 95) < 7
    assert np.std(offsets, axis=0).min() > 1  # and yet not always on the same pixel


def test_kinds_look_like_their_names(patches: list[dict]) -> None:
    y, x = np.mgrid[:64, :64] - 31.5
    hollow, steep, long = defaultdict(list), defaultdict(list), defaultdict(list)
    for patch in patches:
        stain = np.maximum(haematoxylin(patch["pixels"], patch["domain"]), 0)
        dark = np.where(np.hypot(x, y) < 20, np.maximum(stain - np.median(stain) - 0.3, 0), 0)
        dark /= dark.sum()
        a, b = (dark * x).sum(), (dark * y).sum()
        around = np.hypot(x - a, y - b)
        hollow[patch["kind"]].append(stain[(around > 6) & (around < 10)].mean() / stain[around < 3].mean())
        steep[patch["kind"]].append(
            np.percentile(np.hypot(*np.gradient(stain))[around < 18], 97) / stain[around < 18].max()
        )
        spread = np.cov(np.stack([x.ravel(), y.ravel()]), aweights=dark.ravel())
        long[patch["kind"]].append(np.sqrt(np.divide(*np.linalg.eigvalsh(spread)[::-1])))
    hollow, steep, long = ({kind: np.mean(v) for kind, v in d.items()} for d in (hollow, steep, long))
    assert min(hollow["ring"], hollow["anaphase"]) > 1.3 * max(hollow[k] for k in ("plate", *IMPOSTER_KINDS))
    assert steep["out_of_focus"] < 0.8 * min(v for kind, v in steep.items() if kind != "out_of_focus")
    assert min(long["plate"], long["elongated"]) > 1.3 * max(long[k] for k in ("ring", "pyknotic"))


def test_boxes_hold_one_dark_figure_each(tiles: list[dict]) -> None:
    figures, offsets, overhang = [], [], 0
    for tile in tiles:
        assert tile["pixels"].shape == (512, 512, 3)
        assert len(tile["box"]) == len(tile["label"]) >= 2
        stain = gaussian_filter(haematoxylin(tile["pixels"], tile["domain"]), 2)
        usual = np.percentile(stain, 50)
        for x1, y1, x2, y2 in tile["box"]:
            assert (x2 - x1, y2 - y1) == (50, 50)
            assert min(x1, y1) >= -5
            assert max(x2, y2) <= 517
            overhang += min(x1, y1) < 0 or max(x2, y2) > 512
            part = stain[max(y1, 0) : y2, max(x1, 0) : x2]
            figures.append(np.percentile(part, 97) - usual)
            # In an image, the first coordinate is the column.
            row, column = np.unravel_index(part.argmax(), part.shape)
            offsets.append([column + max(x1, 0) - (x1 + x2) / 2, row + max(y1, 0) - (y1 + y2) / 2])
    assert np.percentile(figures, 5) > 0.35
    assert np.median(np.hypot(*np.transpose(offsets))) < 9
    assert overhang >= 1
    mitotic = [sum(tile["label"]) for tile in tiles]
    assert 0 in mitotic
    assert max(mitotic) > 1
    assert all(0 in tile["label"] for tile in tiles)


def test_scanners_differ_in_colour_more_than_slides_of_one_do(patches: list[dict]) -> None:
    colours = defaultdict(list)
    for patch in patches:
        colours[patch["domain"], patch["slide"]].append(patch["pixels"].mean(axis=(0, 1)))
    slides = {key: np.mean(values, axis=0) for key, values in colours.items()}
    centres = {d: np.mean([v for key, v in slides.items() if key[0] == d], axis=0) for d in SCANNER_PROFILES}
    within = {key: np.linalg.norm(value - centres[key[0]]) for key, value in slides.items()}
    between = [np.linalg.norm(centres[a] - centres[b]) for a in centres for b in centres if a < b]
    assert min(between) > 1.3 * np.mean(list(within.values()))
    assert np.mean(between) > 2 * np.mean(list(within.values()))
    assert min(within.values()) > 0.5  # every slide has a colour of its own
    features = np.array([[*p["pixels"].mean(axis=(0, 1)), *p["pixels"].std(axis=(0, 1))] for p in patches])
    names = np.array([p["domain"] for p in patches])
    held_out = np.array([p["slide"][-1] in "01" for p in patches])
    model = LogisticRegression(max_iter=5000).fit(features[~held_out] / 10, names[~held_out])
    assert model.score(features[held_out] / 10, names[held_out]) > 0.75


def test_colour_alone_does_not_tell_figures_from_imposters(patches: list[dict]) -> None:
    scores = []
    for scanner in SCANNER_PROFILES:
        own = [patch for patch in patches if patch["domain"] == scanner]
        labels = np.array([patch["label"] for patch in own])
        colours = np.array([patch["pixels"].mean(axis=(0, 1)) for patch in own]) / 10
        guess = cross_val_predict(LogisticRegression(max_iter=5000), colours, labels, cv=5, method="decision_function")
        scores.append(roc_auc_score(labels, guess))
    assert np.mean(scores) < 0.7


def test_same_seed_same_bytes_whatever_the_processes_and_the_numbers(data_dir: Path, tmp_path: Path) -> None:
    make_synthetic_histology(tmp_path, slides=3, patches_per_slide=3, seed=4, processes=2)
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.png")}
    assert Counter(path.parts[0] for path in written) == {"patches": 36, "tiles": 12}
    for path, content in written.items():
        assert content == (data_dir / path).read_bytes(), path
    make_synthetic_histology(tmp_path / "other", slides=3, patches_per_slide=3, tiles_per_slide=0, seed=5, processes=1)
    assert not (tmp_path / "other" / "tiles.json").exists()
    others = [path.read_bytes() for path in (tmp_path / "other").rglob("*.png")]
    assert len(others) == 36
    assert not {*others} & {*written.values()}


def test_without_its_labels_a_scanner_is_in_no_split(data_dir: Path, tmp_path: Path) -> None:
    make_synthetic_histology(tmp_path, slides=3, patches_per_slide=3, seed=4, label_all=False, processes=1)
    for name, count in (("dataset", 9), ("tiles", 3)):
        datalist = read(tmp_path / f"{name}.json")
        assert {item["domain"] for item in listed(datalist)} == {"XR", "S360", "CS"}
        assert len(datalist["unlabelled"]) == count
        for item in datalist["unlabelled"]:
            assert item["labelled"] is False
            assert item["domain"] == "GT450"
            assert set(item) == {"image", "labelled", "domain", "slide"}
            assert (tmp_path / item["image"]).read_bytes() == (data_dir / item["image"]).read_bytes()


def test_the_same_data_set_may_be_written_again_but_no_other(data_dir: Path, tmp_path: Path) -> None:
    numbers = {"slides": 3, "patches_per_slide": 2, "tiles_per_slide": 0, "processes": 1}
    path = make_synthetic_histology(tmp_path / "again", **numbers)
    before = {p: p.read_bytes() for p in path.parent.rglob("*.*")}
    next(path.parent.rglob("*.png")).unlink()
    path.unlink()  # as after an interrupt
    make_synthetic_histology(tmp_path / "again", **numbers)
    assert {p: p.read_bytes() for p in path.parent.rglob("*.*")} == before
    with pytest.raises(DataError, match=r"dataset\.json: already describes another data set.*Choose a new folder"):
        make_synthetic_histology(tmp_path / "again", seed=1, **numbers)
    foreign = tmp_path / "patches" / "slide.svs"
    foreign.parent.mkdir()
    foreign.touch()
    with pytest.raises(DataError, match=r"already holds .*, expected an empty folder"):
        make_synthetic_histology(tmp_path, **numbers)


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    for name, value, least in (
        ("slides", 2, 3),
        ("patches_per_slide", 1, 2),
        ("tiles_per_slide", -1, 0),
        ("seed", -1, 0),
        ("processes", 0, 1),
        ("slides", 3.5, 3),
        ("seed", True, 0),
    ):
        with pytest.raises(DataError, match=f"{name} is {value}, expected a whole number of {least} or above"):
            make_synthetic_histology(tmp_path, **{name: value})
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file: found a file, expected a folder"):
        make_synthetic_histology(tmp_path / "file")
    with pytest.raises(DataError, match="cannot be written to"):
        make_synthetic_histology("/proc/nowhere", slides=3, patches_per_slide=2, tiles_per_slide=0, processes=1)


def test_the_command_prints_the_counts(tmp_path: Path) -> None:
    numbers = ["--slides=3", "--patches_per_slide=5", "--tiles_per_slide=0", "--processes=1", "--label_all=false"]
    command = (ROOT / "scripts/make_synthetic.py", "histology")
    done = run(*command, f"--output_dir={tmp_path / 'out'}", *numbers, python=sys.executable)
    assert done.returncode == 0, done.stderr
    table = [line.split() for line in done.stdout.splitlines()]
    assert table[0] == ["domain", "split", "slides", "negative", "positive"]
    assert ["XR", "test", "1", "3", "2"] in table
    assert ["S360", "training", "1", "3", "2"] in table
    assert len(table) == 1 + 9 + 2
    assert "without labels: 15 patches of GT450" in done.stdout
