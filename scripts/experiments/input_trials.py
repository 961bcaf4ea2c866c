"""Wrong data for the bundles, and what each has to be answered: a trial a line."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from PIL import Image

from .faults import PATCHES, REGIONS, UNETR, Trial

Edit = Callable[[dict[str, Any]], object]
VOXELS = np.random.default_rng(1).normal(40, 30, (40, 40, 40)).astype(np.int16)
GRID = np.diag([6.0, 6.0, 6.0, 1.0])


def write_datalist(folder: Path, data: Path, source: str, edit: Edit) -> None:
    """A datalist of the trials' data, with absolute paths, changed."""
    content = json.loads((data / source).read_text())
    for entry in (entry for part in content.values() if isinstance(part, list) for entry in part):
        if isinstance(entry, dict):
            for key in {"image", "label"} & entry.keys():
                if isinstance(entry[key], str):
                    entry[key] = str((data / source).parent / entry[key])
    edit(content)
    (folder / "list.json").write_text(json.dumps(content))


def datalist(program: str, source: str, title: str, edit: Edit, answer: str, **more: Any) -> Trial:
    make = partial(write_datalist, source=source, edit=edit)
    given = "--datalist $FOLDER/list.json"
    return Trial("datalists", program, given, answer, prepare=make, title=title, **more)


def raw_datalist(title: str, content: bytes, answer: str, **more: Any) -> Trial:
    def make(folder: Path, data: Path) -> None:
        (folder / "list.json").write_bytes(content)

    given = "--datalist $FOLDER/list.json"
    return Trial("datalists", f"train {UNETR}", given, answer, prepare=make, title=title, **more)


def case(split: str = "training", i: int = 0, **change: Any) -> Edit:
    """An edit: an entry of a list, changed; a key whose value is `...` left out."""

    def edit(content: dict[str, Any]) -> None:
        entry = content[split][i]
        entry.update(change)
        for key in [key for key, value in change.items() if value is ...]:
            del entry[key]

    return edit


def copied(split: str, **change: Any) -> Edit:
    """An edit: the first entry of the training stands in another list too."""
    return lambda content: content[split].append({**content["training"][0], **change})


CT, PATCH_LIST, REGION_LIST = "ct/dataset.json", "histology/dataset.json", "histology/tiles.json"
ct = partial(datalist, f"train {UNETR}", CT)
patches = partial(datalist, f"train {PATCHES}", PATCH_LIST)
regions = partial(datalist, f"train {REGIONS}", REGION_LIST)
LIST = r"list\.json"
NAMED = rf"{LIST}.*entry 0 of 'training'|{LIST}.*training"

DATALISTS = [
    raw_datalist("no JSON", b"{not json", rf"{LIST}: not readable as JSON"),
    raw_datalist("empty", b"", rf"{LIST}: not readable as JSON"),
    raw_datalist("a list", b"[1, 2]", rf"{LIST}: holds a JSON list"),
    raw_datalist("null", b"null", rf"{LIST}: holds a JSON NoneType"),
    raw_datalist("another encoding", '{"name": "Köln"}'.encode("latin1"), LIST),
    raw_datalist("very deep", b"[" * 200_000, LIST),
    ct("a list is missing", lambda d: d.pop("validation"), rf"{LIST}.*validation.*missing"),
    ct("a list that is none", lambda d: d.update(training={"image": "a"}), rf"{LIST}.*training.*not a list"),
    ct("an entry that is null", lambda d: d["training"].append(None), NAMED),
    ct("an image that is null", case(image=None), NAMED),
    ct("an image that is a list", case(image=["a.nii.gz"]), NAMED),
    ct("an image that is a number", case(image=5), NAMED),
    ct("no label", case(label=...), NAMED),
    ct("an empty path", case(image=""), NAMED),
    ct("a folder for a path", case(image="."), NAMED),
    ct("a file that is not there", case(image="zzz.nii.gz"), r"zzz\.nii\.gz"),
    ct("twice the same case", copied("training"), LIST),
    ct("a case in training and validation", copied("validation"), rf"{LIST}.*training.*validation|allow_leakage"),
    ct("a case in training and test", copied("test"), rf"{LIST}.*training.*test|allow_leakage"),
    ct("a name that is a path", case(case="../../evil"), rf"{LIST}.*case"),
    ct("a name with a zero byte", case(case="a\x00b"), rf"{LIST}.*case"),
    ct("a name of two lines", case(case="a\nb"), rf"{LIST}.*case"),
    ct("a name of 300 characters", case(case="x" * 300), rf"{LIST}.*case"),
    ct("other labels", lambda d: d.update(labels={"0": "background", "1": "liver"}), rf"{LIST}: label"),
    ct("labels that are text", lambda d: d.update(labels="liver"), rf"{LIST}.*labels"),
    patches("an image in training and test", copied("test"), rf"{LIST}.*training.*test|allow_leakage"),
    patches("an image in training and validation", copied("validation"), "validation|allow_leakage"),
    patches("a label of 2", case(label=2), LIST),
    patches("a label that is true", case(label=True), LIST),
    patches("no domain", case(domain=...), rf"{LIST}.*domain"),
    patches("an image that is a number", case(image=3), LIST),
    patches("a label that is text", case(label="mitotic"), LIST),
    regions("no box mode", lambda d: d.pop("box_mode"), rf"{LIST}.*box_mode"),
    regions("boxes of another form", case(box=[[50, 50, 10, 10]], label=[1]), rf"{LIST}.*box"),
    regions("a box that is no number", case(box=[[float("nan"), 0, 10, 10]], label=[1]), LIST),
    regions("a box outside of the image", case(box=[[9000, 9000, 9050, 9050]], label=[1]), "box"),
    regions("a box of text", case(box=[["1", "2", "3", "4"]], label=[1]), rf"{LIST}.*box"),
    regions("a box without a label", case(box=[[1, 1, 50, 50]], label=[]), rf"{LIST}.*(box|label)"),
    regions("a negative pixel size", lambda d: d.update(mpp=-1), rf"{LIST}.*mpp"),
    regions("another pixel size", lambda d: d.update(mpp=0.5), "0.5"),
    regions("an image that is not there", case(image="/nowhere/a.png"), r"/nowhere/a\.png"),
    regions("an image in training and test", copied("test"), rf"{LIST}.*training.*test|allow_leakage"),
]


def nifti(path: Path, voxels: np.ndarray = VOXELS, affine: np.ndarray = GRID) -> Path:
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def changed(path: Path, place: int, content: bytes) -> None:
    """Bytes of a file, replaced."""
    found = bytearray(path.read_bytes())
    found[place : place + len(content)] = content
    path.write_bytes(found)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def sheared() -> np.ndarray:
    affine = GRID.copy()
    affine[0, 1] = 3
    return affine


def without_sides(path: Path) -> None:
    image = nib.Nifti1Image(VOXELS, GRID)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, path)


def bomb(path: Path) -> None:
    """Two gigabytes of zeros in two megabytes."""
    header = bytearray(nifti(path.with_suffix("").with_suffix(".nii"), VOXELS[:2, :2, :2]).read_bytes()[:352])
    header[42:48] = struct.pack("<3h", 1000, 1000, 1000)
    with gzip.open(path, "wb", 1) as file:
        file.write(header)
        for _ in range(128):
            file.write(bytes(1 << 24))


def not_a_number() -> np.ndarray:
    voxels = VOXELS.astype(np.float32)
    voxels[3, 3, 3] = np.nan
    return voxels


def slices(folder: Path, modality: bytes = b"CT") -> Path:
    """A folder with three axial slices of DICOM, without extension and preamble."""
    folder.mkdir()
    for k in range(3):
        values = {(8, 0x16): b"UI1.2.840.10008.5.1.4.1.1.2\0", (8, 0x60): b"CS" + modality, (0x20, 0x0E): b"UI1.2.3\0"}
        values |= {(0x20, 0x32): b"DS0\\0\\%d " % (5 * k), (0x20, 0x37): b"DS1\\0\\0\\0\\1\\0 "}
        values |= {
            (0x28, tag): b"US" + struct.pack("<H", n) for tag, n in ((2, 1), (0x10, 40), (0x11, 40), (0x100, 16))
        }
        values |= {(0x28, 0x30): b"DS6\\6 "}
        content = b"".join(
            struct.pack("<HH", *tag) + value[:2] + struct.pack("<H", len(value) - 2) + value[2:]
            for tag, value in sorted(values.items())
        )
        (folder / str(k)).write_bytes(content + b"\xe0\x7f\x10\0OW\0\0" + struct.pack("<I", 3200) + VOXELS[k].tobytes())
    return folder


def scan(title: str, make: Callable[[Path], object], answer: str, name: str = "scan.nii.gz", **more: Any) -> Trial:
    return Trial(
        "scans",
        f"infer {UNETR}",
        f"--input $FOLDER/{name}",
        answer,
        prepare=lambda folder, data: make(folder / name),
        title=title,
        late=True,
        **more,
    )


SCAN = r"scan\.nii"
HUGE = struct.pack("<3h", 30_000, 30_000, 30_000)  # voxels along the axes, in a header
SCANS = [
    scan("empty", lambda p: p.touch(), SCAN),
    scan("text", lambda p: p.write_text("hello"), SCAN),
    scan("cut short, packed", lambda p: cut(nifti(p)), SCAN),
    scan("cut short", lambda p: cut(nifti(p)), SCAN, "scan.nii"),
    scan("changed bits", lambda p: changed(nifti(p), nifti(p).stat().st_size // 2, b"\xff\x00"), SCAN),
    scan("two dimensions", lambda p: nifti(p, VOXELS[:, :, 0]), rf"{SCAN}.*dimension|{SCAN}.*3D"),
    scan("four dimensions", lambda p: nifti(p, np.stack([VOXELS] * 3, -1)), SCAN),
    scan("not a number", lambda p: nifti(p, not_a_number()), SCAN),
    scan("colours", lambda p: nifti(p, np.zeros((9, 9, 9), [("R", "u1"), ("G", "u1"), ("B", "u1")])), SCAN),
    scan("complex numbers", lambda p: nifti(p, VOXELS.astype(np.complex64)), SCAN),
    scan("sheared", lambda p: nifti(p, VOXELS, sheared()), SCAN),
    scan(
        "a size of no CT", lambda p: nifti(p, VOXELS, np.diag([1, 1, 1, 1e3]) / 1e3), rf"{SCAN}.*longest side is 0\.04"
    ),
    scan("no word of sides", without_sides, rf"{SCAN}.*left and right of .* cannot be told"),
    scan("no spacing", lambda p: changed(nifti(p), 80, struct.pack("<f", 0)), SCAN, "scan.nii"),
    scan(
        "a header that claims more", lambda p: changed(nifti(p), 42, struct.pack("<3h", *[30000] * 3)), SCAN, "scan.nii"
    ),
    scan("a bomb", bomb, SCAN),
    scan("a picture", lambda p: Image.new("RGB", (64, 64)).save(p), r"scan\.png", "scan.png"),
    scan("an empty folder", lambda p: p.mkdir(), "series", "series"),
    scan("a slice without its end", lambda p: cut(slices(p) / "2"), r"series: 1 of 3 files.*", "series"),
    scan("another modality", lambda p: slices(p, b"MR"), r"1\.2\.3 with 3 slices: an MR", "series"),
    scan("no zip file", lambda p: p.write_text("hello"), r"a\.zip: cannot be unpacked", "a.zip"),
    scan("no file for a pattern", lambda p: None, r"\*\.nii\.gz", "*.nii.gz"),
    scan("no file for a link", lambda p: p.symlink_to("/nowhere/scan"), SCAN),
    scan("a link in a circle", lambda p: p.symlink_to(p), SCAN),
    scan("a pipe", os.mkfifo, SCAN, timeout=30),
    scan("a list without images for testing", lambda p: p.write_text('{"training": []}'), r"l\.json", "l.json"),
    scan("an image that is a number", lambda p: p.write_text('{"test": [{"image": 5}]}'), r"l\.json", "l.json"),
    scan("a list that is text", lambda p: p.write_text('{"test": "abc"}'), r"l\.json", "l.json"),
    scan("a missing image", lambda p: p.write_text('{"test": [{"image": "nope.nii.gz"}]}'), r"nope\.nii\.gz", "l.json"),
]


def claims(path: Path) -> None:
    """A PNG of 30,000 by 30,000 pixels in some megabytes less than it claims."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(1 << 20))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b""))


def image(bundle: str, title: str, make: Callable[[Path], object], name: str = "a.png", answer: str = "") -> Trial:
    return Trial(
        "images",
        f"infer {bundle}",
        f"--input $FOLDER/{name}",
        answer or name.replace(".", r"\."),
        prepare=lambda folder, data: make(folder / name),
        title=title,
        late=True,
    )


def noise(path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


IMAGES = [
    trial
    for bundle in (PATCHES, REGIONS)
    for trial in (
        image(bundle, "empty", lambda p: p.touch()),
        image(bundle, "text", lambda p: p.write_text("hello")),
        image(bundle, "grey", lambda p: Image.new("L", (64, 64)).save(p)),
        image(bundle, "CMYK", lambda p: Image.new("CMYK", (64, 64)).save(p), "a.tif"),
        image(bundle, "cut short", lambda p: cut(noise(p)), "a.tif"),
        image(bundle, "one that claims more", claims),
        image(bundle, "not there", lambda p: None),
        image(bundle, "a list that is a table", lambda p: p.write_text('{"test": {"a": "b"}}'), "l.json"),
        image(bundle, "an image that is a number", lambda p: p.write_text('{"test": [{"image": 3}]}'), "l.json"),
    )
] + [
    image(PATCHES, "transparent", lambda p: Image.new("RGBA", (64, 64)).save(p)),
    image(PATCHES, "smaller than a patch", lambda p: Image.new("RGB", (20, 20)).save(p)),
    image(REGIONS, "a slide that is none", lambda p: p.write_bytes(b"II*\0" + b"\xff" * 500), "a.svs"),
]


def weights(bundle: str, title: str, make: Callable[[Path], object], answer: str = r"model\.pt", **more: Any) -> Trial:
    def prepare(folder: Path, data: Path) -> None:
        shutil.copytree(data / "weights" / bundle, folder / "models")
        make(folder / "models")

    given = "--ckpt_path $FOLDER/models/model.pt"
    more = {"late": True} | more
    return Trial("weights and records", f"infer {bundle}", given, answer, prepare=prepare, title=title, **more)


class Evil:
    """What would run a command, were it unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("echo unpickled",))


def nan_weights(folder: Path) -> None:
    state = torch.load(folder / "model.pt", weights_only=True)
    torch.save({k: v * float("nan") if v.is_floating_point() else v for k, v in state.items()}, folder / "model.pt")


def record(**change: Any) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        content = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps(content | change))

    return make


def middle(path: Path) -> None:
    changed(path, path.stat().st_size // 2, b"\xff" * 64)


RECORD, THRESHOLD = r"model\.json", r"threshold\.json"
WEIGHTS = [
    weights(UNETR, "empty", lambda f: (f / "model.pt").write_bytes(b"")),
    weights(UNETR, "text", lambda f: (f / "model.pt").write_text("hello")),
    weights(UNETR, "cut short", lambda f: cut(f / "model.pt")),
    weights(UNETR, "changed bytes", lambda f: middle(f / "model.pt")),
    weights(UNETR, "a list", lambda f: torch.save([1, 2], f / "model.pt")),
    weights(UNETR, "a tensor", lambda f: torch.save(torch.zeros(3), f / "model.pt")),
    weights(UNETR, "nothing in it", lambda f: torch.save({}, f / "model.pt")),
    weights(UNETR, "text for tensors", lambda f: torch.save({"a": "b"}, f / "model.pt")),
    weights(UNETR, "not a number", nan_weights),
    weights(UNETR, "a command in it", lambda f: torch.save({"model": Evil()}, f / "model.pt")),
    weights(UNETR, "a folder", lambda f: (os.unlink(f / "model.pt"), (f / "model.pt").mkdir())),
    weights(UNETR, "a record that is no JSON", lambda f: (f / "model.json").write_text("{not"), RECORD),
    weights(UNETR, "a record that is a list", lambda f: (f / "model.json").write_text("[]"), RECORD),
    weights(UNETR, "labels that are text", record(labels="liver"), RECORD),
    weights(UNETR, "a spacing of two", record(spacing=[1, 2]), RECORD),
    weights(PATCHES, "a mean that is text", record(image_mean="abc"), RECORD),
    weights(PATCHES, "a negative crop", record(crop_size=-4), RECORD),
    weights(PATCHES, "an unknown stain_norm", record(stain_norm="vahadane"), RECORD),
    weights(PATCHES, "a threshold that is no JSON", lambda f: (f / "threshold.json").write_text("{"), THRESHOLD),
    weights(PATCHES, "a threshold of 2", lambda f: (f / "threshold.json").write_text('{"threshold": 2}'), THRESHOLD),
    weights(PATCHES, "no threshold", lambda f: (f / "threshold.json").unlink(), THRESHOLD, refused=False),
]


def classifier(title: str, make: Callable[[Path], object], answer: str) -> Trial:
    def prepare(folder: Path, data: Path) -> None:
        shutil.copytree(data / "weights" / PATCHES, folder / "models")
        make(folder / "models")

    given = "--classifier $FOLDER/models/model.pt --classifier_weight 0.5 --threshold 0.5"
    return Trial("classifiers", f"infer {REGIONS}", given, answer, prepare=prepare, title=title, late=True)


CLASSIFIERS = [
    classifier("cut short", lambda f: cut(f / "model.pt"), r"model\.pt"),
    classifier("not a number", nan_weights, r"model\.pt: the weights hold NaN"),
    classifier("another network", lambda f: torch.save({"a": torch.zeros(3)}, f / "model.pt"), "no ResNet or DenseNet"),
    classifier("no record", lambda f: (f / "model.json").unlink(), r"there is no model\.json beside it"),
    classifier("other classes", record(labels={"Normal": 0, "Atypical": 1}), "tells Normal and Atypical apart"),
    classifier("three classes", record(labels={"a": 0, "b": 1, "c": 2}), "expected two classes"),
    classifier("a negative crop", record(crop_size=-4), RECORD),
]


def resumed(title: str, make: Callable[[Path], object], answer: str = r"last\.pt", given: str = "") -> Trial:
    def prepare(folder: Path, data: Path) -> None:
        shutil.copytree(
            data / "weights" / PATCHES, folder / "models", ignore=shutil.ignore_patterns("*.csv", "run.json")
        )
        make(folder / "models")

    given = f"--resume true {given}".strip()
    return Trial("resuming", f"train {PATCHES}", given, answer, prepare=prepare, title=title, late=True)


def without(part: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        content = torch.load(folder / "last.pt", weights_only=True)
        del content[part]
        torch.save(content, folder / "last.pt")

    return make


RESUMING = [
    resumed("cut short", lambda f: cut(f / "last.pt")),
    resumed("empty", lambda f: (f / "last.pt").write_bytes(b"")),
    resumed("changed bytes", lambda f: middle(f / "last.pt")),
    resumed("weights alone", lambda f: shutil.copy(f / "model.pt", f / "last.pt")),
    resumed("a command in it", lambda f: torch.save({"trainer": Evil()}, f / "last.pt")),
    resumed("no state of the evaluator", without("evaluator")),
    resumed("no state of the optimizer", without("optimizer")),
    resumed("another seed", lambda f: None, r"last\.pt.*seed was 0, now it is 3", "--seed 3"),
    resumed("another batch", lambda f: None, r"last\.pt.*batch_size was 8, now it is 4|epoch_length", "--batch_size 4"),
    resumed("fewer scanners", lambda f: None, r"last\.pt", "--train_domains \"['XR']\""),
]
INPUT_TRIALS = [*DATALISTS, *SCANS, *IMAGES, *WEIGHTS, *CLASSIFIERS, *RESUMING]
