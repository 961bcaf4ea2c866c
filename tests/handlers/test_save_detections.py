from __future__ import annotations

import csv
import json
import logging
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from commands import PYTHON, is_locked
from monai.data import DataLoader
from PIL import Image
from region_images import write_scn, write_tiled

from shared.data import collate_regions, list_images, source_digest
from shared.data.regions import Region
from shared.data.roi import Roi
from shared.engines import CaseEvaluator, FaultTolerantDataset, cases_to_do, prepare_region
from shared.handlers import SaveDetections, save_detections
from shared.metrics import box_centres
from shared.reports.detection_files import WRITERS
from shared.reports.provenance import SYNTHETIC_WARNING, UNKNOWN_WARNING
from shared.transforms import OpenRegiond
from shared.utils import DataError, write_json

NAMES = ("non_mitotic", "mitotic")
RECORD = {"name": "MIDOG", "synthetic": False}
ENDINGS = (".csv", ".geojson", ".json", "_gallery.png", "_overview.png")
MADE_WITH = {"weights": "abc", "settings": {"mpp": 0.25}}
PINK = (225, 160, 200)


class Inferer:
    """Finds a mitotic figure for each 100 pixels of the image's width, one that is not, and a doubtful one."""

    def __call__(self, region: Region, network: Any) -> dict[str, np.ndarray]:
        if region.size[0] == 300:
            raise RuntimeError("out of memory")
        x = np.arange(50, region.size[0], 100.0)
        box = np.column_stack([x - 25, 0 * x, x + 25, 0 * x + 50])
        extra = np.array([[10, 60, 60, 110], [60, 60, 110, 110]])
        score, label = np.full(len(x), 0.9), np.ones(len(x), int)
        found = {
            "box": np.vstack([box, extra]).astype(np.float32),
            "score": np.append(score, [0.8, 0.3]).astype(np.float32),
            "label": np.append(label, [0, 1]),
        }
        inside = slice(None) if region.roi is None else region.roi.contains(box_centres(found["box"]))
        return {key: value[inside] for key, value in found.items()}


def images(folder: Path, **widths: int) -> list[dict[str, str]]:
    """Files of these widths and a height of 120 pixels; 0 makes one that is no image."""
    folder.mkdir(parents=True, exist_ok=True)
    data = []
    for name, width in widths.items():
        file = folder / f"{name}.png"
        if width:
            Image.fromarray(np.full((120, width, 3), PINK, np.uint8)).save(file)
        else:
            file.write_text("no image")
        data.append({"case": name, "file": str(file), "image": str(file)})
    return data


def infer(output_dir: Path, data: list[dict[str, str]], **kwargs: Any) -> CaseEvaluator:
    options = {"threshold": 0.5, "class_names": NAMES, "record": RECORD, "area_mm2": 0.001, **kwargs}
    loading = OpenRegiond(mpp=0.25, roi=options.pop("roi", None))
    evaluator = CaseEvaluator(
        torch.device("cpu"),
        DataLoader(FaultTolerantDataset(data, loading), batch_size=1, collate_fn=collate_regions),
        torch.nn.Identity(),
        prepare_batch=prepare_region,
        inferer=Inferer(),
        val_handlers=[SaveDetections(output_dir, **options)],
        decollate=False,
        progress=False,
    )
    evaluator.run()
    return evaluator


def written(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("[!.]*") if p.is_file())


def summary(folder: Path) -> tuple[list[dict[str, str]], dict[str, Any]]:
    with (folder / "summary.csv").open() as file:
        return list(csv.DictReader(file)), json.loads((folder / "summary.json").read_text())


def test_files_of_each_image_and_the_summary(tmp_path: Path) -> None:
    data = images(tmp_path / "in", a=400, b=200)
    data[1]["case"] = "XR/b"
    infer(tmp_path / "out", data)
    expected = [f"{case}{ending}" for case in ("a", "XR/b") for ending in ENDINGS]
    assert written(tmp_path / "out") == sorted([*expected, "summary.csv", "summary.json"])
    points = json.loads((tmp_path / "out" / "a.json").read_text())["points"]
    assert [p["name"] for p in points] == ["mitotic figure"] * 4 + ["non-mitotic figure"]
    assert points[1]["point"] == pytest.approx([0.0375, 0.00625, 0])
    features = json.loads((tmp_path / "out" / "a.geojson").read_text())["features"]
    assert len(features) == 1 + 4 + 1
    assert "metadata" not in features[0]["properties"]

    rows, content = summary(tmp_path / "out")
    assert [(r["case"], r["file"], r["status"], r["reason"]) for r in rows] == [
        (d["case"], d["file"], "done", "") for d in data
    ]
    # 0.001 mm² are 16,000 px: 146 × 110, room for one figure or, at a distance of 100 px, for two
    assert [(r["mitotic"], r["non_mitotic"], r["candidates"], r["mitotic_count"]) for r in rows] == [
        ("4", "1", "6", "2"),
        ("2", "1", "4", "2"),
    ]
    assert (rows[0]["width"], rows[0]["height"], rows[0]["mpp"]) == ("400", "120", "0.25")
    assert (rows[0]["count_area_mm2"], rows[0]["whole_image"], rows[0]["tissue_share"]) == ("0.001", "False", "1.0")
    images_written = content.pop("images")
    assert [image["mitotic_count"] for image in images_written] == [2, 2]
    assert content == {
        "threshold": 0.5,
        "classes": list(NAMES),
        "model": RECORD,
        "mitotic_count": {"area_mm2": 0.001, "aspect": 4 / 3, "min_tissue": 0.5},
        "failed": [],
    }


def test_of_a_slide_with_bounds_what_was_scanned_is_counted(tmp_path: Path) -> None:
    slide = write_scn(tmp_path / "a.scn", np.full((120, 400, 3), PINK, np.uint8), (10, 20))
    infer(tmp_path / "out", [{"case": "a", "file": str(slide), "image": str(slide)}], area_mm2=2)
    (row,), _ = summary(tmp_path / "out")
    assert (row["bounds"], row["count_area_mm2"], row["tissue_share"]) == ("10 20 400 120", "0.003", "1.0")
    area, *_ = json.loads((tmp_path / "out" / "a.geojson").read_text())["features"]
    assert area["geometry"]["coordinates"][0][2] == [400, 120]


@pytest.mark.parametrize(("on_glass", "kept"), [("drop", 2), ("keep", 4)])
def test_detections_on_glass_are_counted_and_dropped(on_glass: str, kept: int, tmp_path: Path) -> None:
    """At 50, 150, 250 and 350 pixels of 0.25 µm; the tissue ends at 120, which 150 is less than 10 µm away from."""
    data = images(tmp_path / "in", a=400)
    pixels = np.full((120, 400, 3), 245, np.uint8)
    pixels[:, :120] = PINK
    Image.fromarray(pixels).save(data[0]["file"])
    infer(tmp_path / "out", data, area_mm2=2, on_glass=on_glass)
    (row,), _ = summary(tmp_path / "out")
    assert (row["mitotic"], row["mitotic_count"], row["candidates"], row["on_glass"]) == (
        *(str(kept), str(kept), str(kept + 2)),
        "2",
    )
    assert float(row["tissue_mm2"]) == pytest.approx(float(row["count_area_mm2"]) * 121 / 400, rel=0.02)
    assert len((tmp_path / "out" / "a.csv").read_text().splitlines()) == 1 + kept + 2
    pixels[:] = 245  # nothing is tissue
    Image.fromarray(pixels).save(data[0]["file"])
    infer(tmp_path / "none", data, on_glass=on_glass)
    assert summary(tmp_path / "none")[0][0]["on_glass"] == "6"


@pytest.mark.parametrize(("area_mm2", "counted"), [(2, ("2", "0.001", "True")), (0.0005, ("1", "0.0005", "False"))])
def test_of_regions_of_interest_the_area_is_reported(area_mm2: float, counted: tuple[str, ...], tmp_path: Path) -> None:
    """Two of 80 × 100 pixels, 0.001 mm² in all, around the figures at 50 and 350 of 400 pixels."""
    data = images(tmp_path / "in", a=400)
    squares = [[[x, 0], [x + 80, 0], [x + 80, 100], [x, 100]] for x in (10, 310)]
    roi = {"type": "MultiPolygon", "coordinates": [[square] for square in squares]}
    write_json(tmp_path / "a.geojson", roi)
    infer(tmp_path / "out", data, roi=str(tmp_path), area_mm2=area_mm2)
    (row,), _ = summary(tmp_path / "out")
    assert float(row["roi_mm2"]) == pytest.approx(0.001)
    assert (row["mitotic_count"], row["count_area_mm2"], row["whole_image"]) == counted
    assert row["mitotic"] == "2"


def test_a_region_of_interest_without_area_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Roi, "area", lambda self, shape, scale: 0.0)  # as of what crosses itself in the image
    outline = [[0, 0], [100, 100], [300, 100], [0, 0]]
    write_json(tmp_path / "a.geojson", {"type": "Polygon", "coordinates": [outline]})
    with pytest.raises(DataError, match=r"a\.png: its region of interest has no area\. Draw it again"):
        infer(tmp_path / "out", images(tmp_path / "in", a=400), roi=str(tmp_path))


def test_a_small_image_is_counted_as_a_whole(tmp_path: Path) -> None:
    infer(tmp_path / "out", images(tmp_path / "in", a=400), area_mm2=2)
    (row,), _ = summary(tmp_path / "out")
    assert (row["mitotic_count"], row["whole_image"], row["count_area_mm2"]) == ("4", "True", "0.003")


def test_images_that_fail_do_not_stop_the_others(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^2 of 4 cases failed:\n  b: .*cannot be read.*\n  c: .*out of memory"):
        infer(tmp_path / "out", images(tmp_path / "in", a=100, b=0, c=300, d=100))
    rows, content = summary(tmp_path / "out")
    assert [(r["case"], r["status"]) for r in rows] == [("a", "done"), ("d", "done"), ("b", "failed"), ("c", "failed")]
    assert "out of memory" in rows[3]["reason"]
    assert [failed["case"] for failed in content["failed"]] == ["b", "c"]
    assert [name for name in written(tmp_path / "out") if name[0] in "bc"] == []


def test_tiles_that_cannot_be_read_and_links_that_lead_nowhere_are_rows(tmp_path: Path) -> None:
    data = images(tmp_path / "in", a=100)
    path = write_tiled(tmp_path / "in" / "b.tif", np.full((120, 200, 3), PINK, np.uint8))
    with tifffile.TiffFile(path) as file:
        at, length = file.pages[0].dataoffsets[1], file.pages[0].databytecounts[1]
    content = bytearray(path.read_bytes())
    content[at : at + length] = bytes(length)
    path.write_bytes(content)
    (tmp_path / "in" / "c.tif").symlink_to("nowhere.tif")
    data = list_images(tmp_path / "in", slides=True)
    with pytest.raises(DataError, match=r"2 of 3 cases failed:\n  b: .*b\.tif: cannot be decoded.*\n  c: .*is a link"):
        infer(tmp_path / "out", data)
    rows, _ = summary(tmp_path / "out")
    assert [(row["case"], row["status"]) for row in rows] == [("a", "done"), ("b", "failed"), ("c", "failed")]
    assert "b.tif: cannot be decoded at 0, 0" in rows[1]["reason"]


def test_results_of_an_earlier_run_do_not_stand_for_images_that_fail(tmp_path: Path) -> None:
    data = images(tmp_path / "in", a=100, b=100, c=100)
    infer(tmp_path / "out", data)
    images(tmp_path / "in", a=0, b=300)
    (tmp_path / "out" / "a_notes.txt").touch()
    with pytest.raises(DataError, match="2 of 2 cases failed"):
        infer(tmp_path / "out", data[:2])
    # of the image that was not given this time, and what is not ours
    assert written(tmp_path / "out") == ["a_notes.txt", *(f"c{e}" for e in ENDINGS), "summary.csv", "summary.json"]
    rows, content = summary(tmp_path / "out")
    assert [(row["case"], row["status"]) for row in rows] == [("c", "done"), ("a", "failed"), ("b", "failed")]
    assert [image["case"] for image in content["images"]] == ["c"]


def test_a_failure_in_writing_is_the_image_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = WRITERS["_gallery.png"]

    def full(path: Path, *args: Any) -> None:
        if path.name.startswith("a"):
            raise OSError("no space left on device")
        draw(path, *args)

    with monkeypatch.context() as context:
        context.setattr(save_detections, "source_digest", lambda file: source_digest(f"{file}/a.png"))
        with pytest.raises(DataError, match=r"a\.png: cannot be read"):
            infer(tmp_path / "out", images(tmp_path / "in", a=100))
    assert written(tmp_path / "out") == ["summary.csv", "summary.json"]
    monkeypatch.setitem(WRITERS, "_gallery.png", full)
    with pytest.raises(DataError, match=r"1 of 2 cases failed:\n  a: OSError: no space left on device"):
        infer(tmp_path / "out", images(tmp_path / "in", a=100, b=100))
    assert written(tmp_path / "out") == [*(f"b{e}" for e in ENDINGS), "summary.csv", "summary.json"]


def test_an_image_called_like_the_summary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"summary\.png: .*like the summary.*Rename"):
        infer(tmp_path / "out", images(tmp_path / "in", summary=100))
    infer(tmp_path / "again", images(tmp_path / "in", a=100))
    before = summary(tmp_path / "again")
    with pytest.raises(DataError, match=r"summary\.png: .*like the summary.*Rename"):
        infer(tmp_path / "again", images(tmp_path / "in", summary=100))
    rows, content = summary(tmp_path / "again")  # with what an earlier inference has found
    assert (rows[:1], content["images"]) == (before[0], before[1]["images"])


@pytest.mark.parametrize(
    ("record", "warning"), [({"synthetic": True}, SYNTHETIC_WARNING), (None, UNKNOWN_WARNING), (RECORD, None)]
)
def test_what_the_network_was_trained_on_is_said(tmp_path: Path, record: Any, warning: str | None) -> None:
    infer(tmp_path / "out", images(tmp_path / "in", a=100), record=record)
    assert summary(tmp_path / "out")[1].get("warning") == warning
    area = json.loads((tmp_path / "out" / "a.geojson").read_text())["features"][0]["properties"]
    assert area.get("metadata", {}).get("warning") == warning
    for name in ("overview", "gallery"):
        with Image.open(tmp_path / "out" / f"a_{name}.png") as picture:
            red = np.asarray(picture.convert("RGB")).astype(int)[:60]
        assert ((red[..., 0] > 180) & (red[..., 1:].max(axis=-1) < 80)).any() == (warning is not None)


def test_running_again_starts_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        evaluator = infer(tmp_path / "out", images(tmp_path / "in", a=100))
    assert "a: 1 of 3 detections are mitotic figures, 0 on glass are dropped; 1 mitotic figure in" in caplog.text
    first = (tmp_path / "out" / "summary.json").read_bytes()
    evaluator.run()
    assert (tmp_path / "out" / "summary.json").read_bytes() == first


def to_do(output_dir: Path, data: list[dict[str, str]], skip: bool = False, **made: Any) -> list[dict[str, str]]:
    return cases_to_do(data, output_dir, MADE_WITH | made, skip, table="summary")


def test_a_second_inference_adds_to_the_summary(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, second = images(tmp_path / "in", a=100, b=100), images(tmp_path / "in", b=200, c=100)
    infer(out, first, made_with=MADE_WITH)
    infer(out, second, made_with=MADE_WITH)
    rows, content = summary(out)
    assert [(row["case"], row["width"]) for row in rows] == [("a", "100"), ("b", "200"), ("c", "100")]
    assert [image["case"] for image in content["images"]] == ["a", "b", "c"]
    assert content["weights"] == "abc"


@pytest.mark.parametrize("content", [{"images": [3]}, {"mean": 0.5, "model": {}}, ["a"]])
def test_another_file_is_not_replaced(tmp_path: Path, content: Any) -> None:
    """Such as the summary of an evaluation."""
    out, data = tmp_path / "out", images(tmp_path / "in", a=100)
    write_json(out / "summary.json", content)
    for attempt in (lambda: to_do(out, data), lambda: infer(out, data)):
        with pytest.raises(DataError, match=r"summary\.json: is not from an inference of this kind"):
            attempt()
    assert json.loads((out / "summary.json").read_text()) == content
    assert not is_locked(out)


def test_the_results_of_another_image_stay(tmp_path: Path) -> None:
    """Also where it is the only one that is given; the others go on."""
    out = tmp_path / "out"
    infer(out, images(tmp_path / "in", a=100, b=100), made_with=MADE_WITH)
    before = {name: (out / name).read_bytes() for name in written(out) if name.startswith("a")}
    (tmp_path / "in" / "b.png").unlink()  # has moved
    data = to_do(out, images(tmp_path / "other", a=200, b=100, c=100))
    with pytest.raises(DataError, match=r"1 of 3 cases failed:\n  a: .*/out/a: holds the results of .*/in/a\.png"):
        infer(out, data, made_with=MADE_WITH)
    assert {name: (out / name).read_bytes() for name in before} == before
    rows, _ = summary(out)
    assert [(row["case"], row["status"], row["width"]) for row in rows] == [
        ("a", "done", "100"),
        ("b", "done", "100"),
        ("c", "done", "100"),
        ("a", "failed", ""),
    ]


@pytest.mark.parametrize(
    ("made", "options", "found"),
    [
        ({"weights": "xyz"}, {}, "weights is 'abc' there and 'xyz' here"),
        ({"settings": {"mpp": 0.5}}, {}, "mpp is 0.25 there and 0.5 here"),
        ({}, {"threshold": 0.7}, "threshold is 0.5 there and 0.7 here"),
    ],
)
def test_results_of_other_settings_do_not_mix(tmp_path: Path, made: dict, options: dict, found: str) -> None:
    infer(tmp_path / "out", images(tmp_path / "in", a=100), made_with=MADE_WITH)
    before = {name: (tmp_path / "out" / name).read_bytes() for name in written(tmp_path / "out")}
    with pytest.raises(
        DataError, match=rf"summary\.json: holds results of other weights or settings: {found}\. Choose"
    ):
        infer(tmp_path / "out", images(tmp_path / "in", a=100, b=100), made_with=MADE_WITH | made, **options)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in written(tmp_path / "out")} == before


def test_an_interrupted_inference_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has done is in no summary yet, the half-written image is done anew, the one before it all is kept."""
    out, data = tmp_path / "out", images(tmp_path / "in", a=100, b=100, c=100, d=100)
    infer(out, data[:1], made_with=MADE_WITH)
    draw = WRITERS["_gallery.png"]

    def stop(path: Path, *args: Any) -> None:
        if path.name.startswith("c"):
            raise KeyboardInterrupt
        draw(path, *args)

    with monkeypatch.context() as context:
        context.setitem(WRITERS, "_gallery.png", stop)
        with pytest.raises(KeyboardInterrupt):
            infer(out, to_do(out, data, skip=True), made_with=MADE_WITH)
    assert [row["case"] for row in summary(out)[0]] == ["a"]
    with (out / "summary.unfinished.jsonl").open("a") as file:
        file.write('{"case": "c", "fi')
    left = to_do(out, data, skip=True)
    assert [case["case"] for case in left] == ["c", "d"]
    infer(out, left, made_with=MADE_WITH)
    assert [row["case"] for row in summary(out)[0]] == ["a", "b", "c", "d"]
    assert to_do(out, data, skip=True) == []
    assert [name for name in written(out) if name.startswith("summary")] == ["summary.csv", "summary.json"]


def test_what_is_done_is_what_has_the_same_image_weights_and_settings(tmp_path: Path) -> None:
    out, data = tmp_path / "out", images(tmp_path / "in", a=100, b=100)
    infer(out, data, made_with=MADE_WITH)
    assert to_do(out, data) == data
    assert to_do(out, data, skip=True) == []
    for other in ({"weights": "xyz"}, {"weights": None}, {"settings": {"mpp": 0.5}}):
        assert to_do(out, data, skip=True, **other) == data
    assert to_do(out, [data[0] | {"mpp": 0.5}, data[1]], skip=True) == [data[0] | {"mpp": 0.5}]
    images(tmp_path / "in", a=200)
    (out / "b_gallery.png").unlink()
    assert to_do(out, data, skip=True) == data


def test_of_two_inferences_at_a_time_one_is_refused(tmp_path: Path) -> None:
    infer(tmp_path / "out", images(tmp_path / "in", a=100))
    code = f"""
import time
from shared.utils import lock_folder
lock_folder({str(tmp_path / "out")!r}, "")
print("held", flush=True)
time.sleep(600)"""
    with subprocess.Popen([PYTHON, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            with pytest.raises(DataError, match=r"out: another run writes here .*choose another --output_dir"):
                infer(tmp_path / "out", images(tmp_path / "in", b=100))
        finally:
            process.kill()
    assert [row["case"] for row in summary(tmp_path / "out")[0]] == ["a"]


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got 2"):
        SaveDetections(tmp_path, threshold=2)
    with pytest.raises(ValueError, match="class_names must be two names"):
        SaveDetections(tmp_path, class_names=["mitotic"])
    with pytest.raises(ValueError, match="'area_mm2': -1"):
        SaveDetections(tmp_path, area_mm2=-1)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        SaveDetections(tmp_path / "file" / "folder")
