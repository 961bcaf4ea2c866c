from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from commands import is_locked
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from monai.transforms import Activationsd
from PIL import Image

from shared.data import collate_readable, source_digest
from shared.engines import FaultTolerantDataset, cases_to_do
from shared.handlers import SavePredictions
from shared.reports.provenance import SYNTHETIC_WARNING, UNKNOWN_WARNING
from shared.transforms import LoadPatchd
from shared.utils import DataError, read_csv

NAMES = ("other", "mitotic")
RECORD = {"name": "MIDOG", "synthetic": False}


def images(folder: Path, count: int, broken: tuple[int, ...] = ()) -> list[dict[str, str]]:
    """Grey squares, the darkest first; the files of `broken` are no images."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for i in range(count):
        file = folder / f"{i}.png"
        if i in broken:
            file.write_text("no image")
        else:
            Image.fromarray(np.full((8, 8, 3), round(255 * i / count), np.uint8)).save(file)
        found.append({"case": file.name, "file": str(file), "image": str(file)})
    return found


def probability(i: int, count: int) -> float:
    return 1 / (1 + math.exp(-(round(255 * i / count) / 64 - 2)))


class BrightIsPositive(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().mean(dim=(1, 2, 3))[:, None] / 64 - 2


def infer(output_dir: Path, data: list[dict[str, str]], batch_size: int = 3, **kwargs: Any) -> SupervisedEvaluator:
    options = {"threshold": 0.3, "class_names": NAMES, "record": RECORD, **kwargs}
    dataset = FaultTolerantDataset(data, LoadPatchd(crop_size=8, size=8))
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=batch_size, collate_fn=collate_readable),
        network=BrightIsPositive(),
        postprocessing=Activationsd("pred", sigmoid=True),
        val_handlers=[SavePredictions(output_dir, **options)],
        decollate=False,
    )
    evaluator.run()
    return evaluator


def read(folder: Path) -> tuple[list[dict[str, str]], dict[str, Any]]:
    with (folder / "predictions.csv").open() as file:
        return list(csv.DictReader(file)), json.loads((folder / "predictions.json").read_text())


def test_names_that_look_like_formulas(tmp_path: Path) -> None:
    """In the table a spreadsheet takes them for text; our reader and the JSON have them as they are."""
    names = ["=cmd|' .png", "+a.png", "-b.png", "@c.png", "'=d.png"]
    data = images(tmp_path / "in", 5)
    for entry, name in zip(data, names, strict=True):
        file = Path(entry["file"]).rename(tmp_path / "in" / name)
        entry |= {"case": name, "file": str(file), "image": str(file)}
    infer(tmp_path / "out", data)
    rows, content = read(tmp_path / "out")
    assert [row["case"] for row in rows] == [f"'{name}" for name in names]
    assert [row["case"] for row in read_csv(tmp_path / "out" / "predictions.csv")] == names
    assert [row["case"] for row in content["predictions"]] == names


def test_predictions_in_the_order_of_the_input(tmp_path: Path) -> None:
    data = images(tmp_path / "in", 7)[::-1]
    infer(tmp_path / "out", data)
    rows, content = read(tmp_path / "out")
    assert [(r["case"], r["file"]) for r in rows] == [(d["case"], d["file"]) for d in data]
    expected = [probability(i, 7) for i in range(6, -1, -1)]
    assert [float(r["probability"]) for r in rows] == pytest.approx(expected, abs=1e-6)
    assert [r["class"] for r in rows] == [NAMES[p >= 0.3] for p in expected]
    assert {r["class"] for r in rows} == set(NAMES)
    written = content.pop("predictions")
    assert [p.pop("source_digest") for p in written] == [source_digest(d["file"]) for d in data]
    assert [{k: str(v) for k, v in p.items()} for p in written] == rows
    assert content == {
        "threshold": 0.3,
        "classes": list(NAMES),
        "model": RECORD,
        "adapted_batch_norm": False,
        "failed": [],
    }


def test_those_that_fail_are_listed_after_the_others_are_written(tmp_path: Path) -> None:
    data = images(tmp_path / "in", 8, broken=(1, 3, 4, 5))  # of the second batch, none can be read
    with pytest.raises(DataError, match=r"^4 of 8 images failed:\n  1.png: .*1.png: cannot be read") as error:
        infer(tmp_path / "out", data)
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]] == [
        "1.png",
        "3.png",
        "4.png",
        "5.png",
    ]
    rows, content = read(tmp_path / "out")
    assert [r["case"] for r in rows] == ["0.png", "2.png", "6.png", "7.png"]
    assert float(rows[-1]["probability"]) == pytest.approx(probability(7, 8), abs=1e-6)
    assert [f["case"] for f in content["failed"]] == ["1.png", "3.png", "4.png", "5.png"]
    assert "cannot be read as an image" in content["failed"][0]["reason"]
    assert (tmp_path / "out" / "preview.png").is_file()


def test_predictions_of_an_earlier_run_do_not_stay_when_all_fail(tmp_path: Path) -> None:
    infer(tmp_path / "out", images(tmp_path / "in", 2))
    assert (tmp_path / "out" / "predictions.csv").is_file()
    with pytest.raises(DataError, match=r"^2 of 2 images failed:"):
        infer(tmp_path / "out", images(tmp_path / "in", 2, broken=(0, 1)))
    assert not list((tmp_path / "out").glob("[!.]*"))


MADE_WITH = {"weights": "abc", "settings": {"crop_size": 8}}


def to_do(output_dir: Path, data: list[dict[str, str]], skip: bool = True) -> list[dict[str, str]]:
    return cases_to_do(data, output_dir, MADE_WITH, skip, table="predictions")


def test_a_second_inference_adds_to_the_table_and_keeps_what_is_of_other_images(tmp_path: Path) -> None:
    out, data = tmp_path / "out", images(tmp_path / "in", 4)
    infer(out, data[:2], made_with=MADE_WITH)
    other = images(tmp_path / "other", 1)
    Image.new("RGB", (8, 8), "white").save(other[0]["file"])
    with pytest.raises(
        DataError, match=r"^1 of 3 images failed:\n  0\.png: .*/out/0\.png: holds the results of .*/in/0"
    ):
        infer(out, to_do(out, [*other, *data[1:3]], skip=False), made_with=MADE_WITH)
    rows, content = read(out)
    assert [(row["case"], row["file"]) for row in rows] == [(d["case"], d["file"]) for d in data[:3]]
    assert [f["case"] for f in content["failed"]] == ["0.png"]
    with pytest.raises(DataError, match="crop_size is 8 there and 9 here"):
        infer(out, data, made_with=MADE_WITH | {"settings": {"crop_size": 9}})
    assert read(out) == (rows, content)


def test_an_interrupted_inference_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, data = tmp_path / "out", images(tmp_path / "in", 7)
    infer(out, data[:1], made_with=MADE_WITH)
    with monkeypatch.context() as context:
        outputs = [torch.zeros(3, 1)]
        context.setattr(BrightIsPositive, "forward", lambda self, x: outputs.pop())
        with pytest.raises(IndexError, match="pop from empty list"):
            infer(out, to_do(out, data), made_with=MADE_WITH)
    assert not is_locked(out)
    assert [row["case"] for row in read(out)[0]] == ["0.png"]
    left = to_do(out, data)
    assert left == data[4:]
    infer(out, left, made_with=MADE_WITH)
    assert [row["case"] for row in read(out)[0]] == [d["case"] for d in data]
    assert not (out / "predictions.unfinished.jsonl").exists()


def test_an_image_that_goes_meanwhile_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, data = tmp_path / "out", images(tmp_path / "in", 2)
    monkeypatch.setattr(
        BrightIsPositive, "forward", lambda self, x: Path(data[0]["file"]).unlink() or torch.zeros(2, 1)
    )
    with pytest.raises(DataError, match=r"1 of 2 images failed:\n  0\.png: .*0\.png: cannot be read \(No such file"):
        infer(out, data)
    assert [row["case"] for row in read(out)[0]] == ["1.png"]


def test_batch_norm_is_not_adapted_to_the_rest(tmp_path: Path) -> None:
    made = {"weights": "abc", "settings": {"adapt_batch_norm": True}}
    with pytest.raises(DataError, match="Leave one of the two options out"):
        cases_to_do([], tmp_path, made, True, table="predictions")


def test_where_all_fail_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^2 of 2 images failed:"):
        infer(tmp_path / "out", images(tmp_path / "in", 2, broken=(0, 1)))
    with pytest.raises(DataError, match=r"^/.*0.png: cannot be read as an image"):
        infer(tmp_path / "out", images(tmp_path / "one", 1, broken=(0,)))
    assert list((tmp_path / "out").glob("[!.]*")) == []


@pytest.mark.parametrize(
    ("record", "warning"),
    [({}, UNKNOWN_WARNING), ({"synthetic": True}, SYNTHETIC_WARNING), ({"synthetic": False}, None)],
)
def test_what_the_weights_are_is_said(tmp_path: Path, record: dict[str, Any], warning: str | None) -> None:
    infer(tmp_path / "out", images(tmp_path / "in", 2), record=record, adapted="true")
    content = read(tmp_path / "out")[1]
    assert (content.get("warning"), content["model"], content["adapted_batch_norm"]) == (warning, record or None, True)
    picture = matplotlib.image.imread(tmp_path / "out" / "preview.png")[..., :3]
    assert ((picture @ [1, -0.5, -0.5] > 0.5).sum() > 100) == bool(warning)


def test_running_again_starts_anew(tmp_path: Path) -> None:
    evaluator = infer(tmp_path / "out", images(tmp_path / "in", 4))
    first = (tmp_path / "out" / "predictions.json").read_bytes()
    evaluator.run()
    assert (tmp_path / "out" / "predictions.json").read_bytes() == first


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got -0.1"):
        SavePredictions(tmp_path, threshold=-0.1)
    with pytest.raises(ValueError, match="class_names must be two names"):
        SavePredictions(tmp_path, class_names="ab")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        SavePredictions(tmp_path / "file" / "folder")
