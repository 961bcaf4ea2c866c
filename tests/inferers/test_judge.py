"""A classifier's judgement of what a detector has found, against slow and literal transcriptions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from region_images import HEIGHT, WIDTH, texture, write_picture, write_pyramid
from torch import Tensor, nn

from shared.data import Region
from shared.inferers import CandidateJudge, CropClassifier, SubtypeCaller, combine_scores
from shared.inferers.region import _ImageInMemory
from shared.transforms import LoadPatchd
from shared.utils import DataError

MPP = 0.25
PLAIN = {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}


class Darkness(nn.Module):
    """How dark the upper left of a crop is, as a logit; it keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        size = x.shape[-1] // 2
        return 4 * (0.5 - x[:, :, :size, :size].mean(dim=(1, 2, 3)))[:, None]


@pytest.fixture
def region(tmp_path: Path) -> Region:
    return Region(write_picture(tmp_path / "a.png", texture()), MPP)


def slow_crop(image: np.ndarray, x: float, y: float, side: int) -> np.ndarray:
    """Pixel by pixel; an index beyond an edge goes back from it, which is not repeated."""

    def inside(index: int, length: int) -> int:
        while not 0 <= index < length:
            index = -index if index < 0 else 2 * (length - 1) - index
        return index

    left, top = math.floor(x - side / 2), math.floor(y - side / 2)
    rows = [
        [image[inside(top + i, len(image)), inside(left + k, image.shape[1])] for k in range(side)] for i in range(side)
    ]
    return np.array(rows)


POINTS = np.array([[150.0, 100.0], [0.0, 0.0], [299.5, 199.5], [3.2, 120.7], [151.5, 199.0], [31.99, 32.5]])


@pytest.mark.parametrize("side", [7, 64])
def test_crops_are_those_of_a_slow_loop(region: Region, side: int) -> None:
    classify = CropClassifier(Darkness(), side, side, MPP)
    crops = classify.crops(region, POINTS)
    assert crops.shape == (len(POINTS), 3, side, side)
    for crop, (x, y) in zip(crops, POINTS.tolist(), strict=True):
        np.testing.assert_array_equal(crop.permute(1, 2, 0).numpy(), slow_crop(texture(), x, y, side))


def test_an_image_smaller_than_a_crop_is_reflected_again_and_again(tmp_path: Path) -> None:
    small = texture()[:10, :13]
    found = Region(write_picture(tmp_path / "small.png", small), MPP).square(6, 4, 64)
    np.testing.assert_array_equal(found, slow_crop(small, 6, 4, 64))


def test_a_crop_is_resampled_as_the_patches_of_the_training_were(region: Region, tmp_path: Path) -> None:
    """40 pixels to 64: what the loader of patches makes of the same 40 pixels in a file."""
    x, y = 150.0, 90.0
    write_picture(tmp_path / "patch.png", slow_crop(texture(), x, y, 40))
    loaded = LoadPatchd("image", crop_size=40, size=64)({"image": str(tmp_path / "patch.png")})["image"]
    (crop,) = CropClassifier(Darkness(), 40, 64, MPP).crops(region, np.array([[x, y]]))
    torch.testing.assert_close(crop, torch.as_tensor(loaded), rtol=0, atol=0)


def test_pixels_of_another_size_are_resampled(tmp_path: Path) -> None:
    """A classifier of 0.5 µm sees of an image of 0.25 twice as much, and of one of 0.27 what is there."""
    region = Region(write_pyramid(tmp_path / "a.tif", [texture(), texture()[::2, ::2]]), MPP)
    (crop,) = CropClassifier(Darkness(), 32, 32, 0.5).crops(region, np.array([[160.0, 100.0]]))
    np.testing.assert_array_equal(crop.permute(1, 2, 0), region.read(160 - 32, 100 - 32, 32, 32, 2.0))
    (edge,) = CropClassifier(Darkness(), 32, 32, 0.5).crops(region, np.array([[0.0, 100.0]]))
    np.testing.assert_array_equal(edge[:, :, 16:].permute(1, 2, 0), region.read(0, 100 - 32, 16, 32, 2.0))
    np.testing.assert_array_equal(edge[:, :, 1:16], edge[:, :, 17:].flip(2))
    near = CropClassifier(Darkness(), 32, 32, 0.27)
    assert (near.scale(region), CropClassifier(Darkness(), 32, 32, 0.5).scale(region)) == (1.0, 2.0)
    unknown = Region(write_picture(tmp_path / "b.png", texture()))
    assert CropClassifier(Darkness(), 32, 32, 0.5).scale(unknown) == 1.0
    assert CropClassifier(Darkness(), 32, 32, 0.5, assumed_mpp=0.25).scale(unknown) == 2.0


def test_a_window_shows_what_lies_around_it(region: Region) -> None:
    window = region.window(100, 50, 40, 40)
    np.testing.assert_array_equal(window.square(2, 3, 64), region.square(102, 53, 64))
    corner = region.window(WIDTH - 20, HEIGHT - 20, 20, 20)
    np.testing.assert_array_equal(corner.square(19, 19, 64), region.square(WIDTH - 1, HEIGHT - 1, 64))


def test_a_place_far_outside_is_refused(region: Region) -> None:
    with pytest.raises(ValueError, match="no pixel lies within 8 pixels around -20, 5"):
        region.square(-20, 5, 8)


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_probabilities_are_those_of_crop_by_crop(region: Region, flips: bool, batch_size: int) -> None:
    mean, std = (0.5, 0.4, 0.6), (0.2, 0.3, 0.1)
    network = Darkness()
    classify = CropClassifier(network, 16, 16, MPP, None, mean, std, batch_size=batch_size, flips=flips)
    found = classify(region, POINTS)
    assert len(network.seen) == -(-len(POINTS) // batch_size) * (4 if flips else 1)
    expected = []
    for x, y in POINTS.tolist():
        crop = (slow_crop(texture(), x, y, 16) / 255 - mean) / std
        ways = [crop, crop[:, ::-1], crop[::-1], crop[::-1, ::-1]] if flips else [crop]
        expected.append(np.mean([1 / (1 + math.exp(-4 * (0.5 - way[:8, :8].mean()))) for way in ways]))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == np.float32


def test_without_a_place_the_network_is_not_asked(region: Region) -> None:
    network = Darkness()
    assert CropClassifier(network, 16, 16, MPP)(region, np.empty((0, 2))).shape == (0,)
    assert network.seen == []


def test_stains_are_changed_as_the_classifier_knows_them(region: Region) -> None:
    class Inverted:
        def fit(self, images: list[Region]) -> str:
            return Path(images[0].path).name

        def change(self, fit: str) -> Any:
            assert fit == "a.png"
            return lambda image: 255 - image

    network = Darkness()
    CropClassifier(network, 16, 16, MPP, **PLAIN, normalizer=Inverted())(region, POINTS[:1])
    expected = 1 - slow_crop(texture(), *POINTS[0], 16) / 255
    np.testing.assert_allclose(network.seen[0][0].permute(1, 2, 0), expected, atol=1e-6)


def test_what_is_no_number_names_the_image(region: Region) -> None:
    with pytest.raises(DataError, match=r"a\.png: the classifier gives no number here"):
        CropClassifier(lambda x: torch.full((len(x), 1), torch.nan), 16, 16, MPP)(region, POINTS)


@pytest.mark.parametrize(
    "options", [{"crop_size": 0}, {"patch_size": 0}, {"batch_size": 0}, {"mpp": 0.0}, {"assumed_mpp": -1.0}]
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be 1 or more, mpp and assumed_mpp above 0"):
        CropClassifier(Darkness(), **options)


def detections(seed: int, count: int = 40) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    both = rng.uniform(0.05, 0.95, (count, 2)).astype(np.float32)  # probabilities of class 0 and 1
    centres = rng.uniform(0, 190, (count, 2)).astype(np.float32)
    order = np.argsort(-both.max(axis=1))
    both, centres = both[order], centres[order]
    box = np.concatenate([centres - 25, centres + 25], axis=1)
    return {"box": box, "score": both.max(axis=1), "label": both.argmax(axis=1), "mitotic": both[:, 1]}


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("threshold", [0.2, 0.6])
@pytest.mark.parametrize("floor", [0.0, 0.4])
def test_the_judgement_is_that_of_a_loop(region: Region, weight: float, threshold: float, floor: float) -> None:
    found = detections(0)
    opinion = np.random.default_rng(1).uniform(0, 1, len(found["score"])).astype(np.float32)
    shown = []
    for i, prob in enumerate(found["mitotic"].tolist()):
        if weight and prob >= floor and (1 - weight) * prob + weight >= threshold:
            shown.append(i)
    assert len(shown) < 40 or floor == 0

    def classify(given: Region, points: np.ndarray) -> np.ndarray:
        assert given is region
        np.testing.assert_allclose(points, found["box"][shown][:, :2] + 25, atol=1e-4)
        return opinion[shown]

    expected = []
    for i in range(len(opinion)):
        together = (1 - weight) * float(found["mitotic"][i]) + weight * float(opinion[i] if i in shown else 0)
        if together >= threshold or found["label"][i] == 1:
            expected.append((together, 1, *found["box"][i].tolist()))
        else:
            expected.append((float(found["score"][i]), 0, *found["box"][i].tolist()))
    expected.sort(key=lambda row: -row[0])
    judged = CandidateJudge(classify, weight, threshold, floor=floor)(region, found)
    rows = np.column_stack([judged["score"], judged["label"], judged["box"]])
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    assert {key: value.dtype for key, value in judged.items()} == {key: value.dtype for key, value in found.items()}


@pytest.mark.parametrize(("weight", "threshold"), [(0.3, 0.6), (0.6, 0.7), (1.0, 0.4)])
def test_what_is_not_shown_to_the_classifier_would_not_be_called(
    region: Region, weight: float, threshold: float
) -> None:
    """The figures are those of a judge who is asked about everything, with the same scores."""
    found, asked = detections(3), []
    opinion = np.random.default_rng(4).random(40).astype(np.float32)

    def classify(given: Region, points: np.ndarray) -> np.ndarray:
        asked.extend(points)
        return opinion[[np.abs(found["box"][:, :2] + 25 - point).sum(axis=1).argmin() for point in points]]

    def figures(judged: dict[str, np.ndarray]) -> list[tuple[float, ...]]:
        called = (judged["label"] == 1) & (judged["score"] >= threshold)
        return [(score, *box) for score, box in zip(judged["score"][called], judged["box"][called], strict=True)]

    judged = CandidateJudge(classify, weight, threshold)(region, found)
    together = combine_scores(found["mitotic"], opinion, weight)
    own = (found["label"] == 1) | (together >= threshold)
    everything = {"score": np.where(own, together, found["score"]), "label": np.where(own, 1, 0), "box": found["box"]}
    assert sorted(figures(judged)) == sorted(figures(everything)) != []
    assert len(asked) < 40 if weight < 1 else len(asked) == 40


def test_without_a_detection_there_is_nothing_to_judge(region: Region) -> None:
    none = {key: value[:0] for key, value in detections(0).items()}
    judged = CandidateJudge(CropClassifier(Darkness(), 16, 16, MPP), 0.5, 0.5)(region, none)
    assert {key: value.shape for key, value in judged.items()} == {key: value.shape for key, value in none.items()}


def test_two_probabilities_become_one() -> None:
    one, other = np.array([0.0, 0.25, 1.0], np.float32), np.array([1.0, 0.75, 1.0], np.float32)
    np.testing.assert_allclose(combine_scores(one, other, 0.25), [0.25, 0.375, 1.0])
    np.testing.assert_array_equal(combine_scores(one, other, 0.0), one)
    np.testing.assert_array_equal(combine_scores(one, other, 1.0), other)


@pytest.mark.parametrize("given", [{"weight": -0.1}, {"weight": 1.1}, {"threshold": 2.0}, {"floor": -0.5}])
def test_weight_threshold_and_floor_are_shares(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"weight, threshold and floor must be in \[0, 1\]"):
        CandidateJudge(lambda region, points: points, **given)


def test_region_of_a_picture_in_memory(tmp_path: Path) -> None:
    """What the inferer makes of a tensor has limits, too, and squares."""
    in_memory = _ImageInMemory(torch.from_numpy(texture()).permute(2, 0, 1), MPP)
    assert in_memory.limits == (0, 0, WIDTH, HEIGHT)
    file = Region(write_picture(tmp_path / "a.png", texture()), MPP)
    np.testing.assert_array_equal(in_memory.square(3, 190, 32), file.square(3, 190, 32))


def test_kinds_are_told_of_what_is_called_a_figure(region: Region) -> None:
    found = detections(2)
    asked: list[np.ndarray] = []

    def classify(given: Region, points: np.ndarray) -> np.ndarray:
        asked.append(points)
        return np.linspace(0, 1, len(points), dtype=np.float32)

    caller = SubtypeCaller(classify, ("Normal", "Atypical"), 0.6, 0.5)
    told = caller(region, found)
    figures = [i for i in range(40) if found["label"][i] == 1 and found["score"][i] >= 0.6]
    np.testing.assert_allclose(asked[0], found["box"][figures][:, :2] + 25, atol=1e-4)
    assert 5 < len(figures) < 40
    expected = dict(zip(figures, np.linspace(0, 1, len(figures)), strict=True))
    for i, (p, name) in enumerate(zip(told["subtype"].tolist(), caller.names_of(told["subtype"]), strict=True)):
        assert name == ("" if i not in expected else "Atypical" if expected[i] >= 0.5 else "Normal")
        assert math.isnan(p) == (i not in expected)
    np.testing.assert_array_equal(told["score"], found["score"])
    with pytest.raises(ValueError, match="thresholds must be in"):
        SubtypeCaller(classify, ("a", "b"), 1.5)
