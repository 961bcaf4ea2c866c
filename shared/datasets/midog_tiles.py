"""MIDOG for a detector: the images as regions with boxes, split by slide as their patches are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.contrib.concurrent import thread_map

from ..data import Region
from .midog import MidogImage, midog_domain


def midog_regions(
    images: Sequence[MidogImage],
    image_dir: str | os.PathLike,
    output_dir: str | os.PathLike,
    domain: Sequence[str] = ("scanner",),
    num_workers: int = 4,
) -> list[dict[str, Any]]:
    """An entry of a datalist for each image. The TIFF files stay where they are.

    Args:
        images: as `find_midog` gives them.
        image_dir: where the TIFF files are.
        output_dir: of the datalist; paths are relative to it.
        domain: fields for `midog_domain`.
        num_workers: headers read at a time.

    Returns:
        Entries for `load_regions`: `image`, `box` (cut off at the image's edges) and `label`, `domain`, `slide`,
        `width`, `height`, `mpp` where the file states it, every field of the source, and `figures`, what the source
        holds of each box, its `bbox` included. Those of images that nobody annotated have none of the three.

    Raises:
        DataError: an image's domain is not known, or a file cannot be read.
    """
    entry = partial(_entry, Path(image_dir).resolve(), Path(output_dir).resolve(), domain)
    return thread_map(entry, images, max_workers=num_workers, desc="reading headers", unit="image")


def _entry(image_dir: Path, output_dir: Path, domain: Sequence[str], image: MidogImage) -> dict[str, Any]:
    path, (width, height) = image_dir / image.file_name, image.size
    known: dict[str, Any] = {"image": os.path.relpath(path, output_dir)}
    if image.labelled:
        known["box"] = [_clipped(figure["bbox"], width, height) for figure in image.figures]
        known["label"] = [figure["label"] for figure in image.figures]
    known |= {"domain": midog_domain(image, domain), "slide": image.file_name, "labelled": image.labelled}
    known |= {"file_name": image.file_name, "width": width, "height": height}
    region = Region(path)
    known |= {"tiled": not region.in_memory} | ({} if region.mpp is None else {"mpp": region.mpp})
    figures = {"figures": list(image.figures)} if image.labelled else {}
    # a field of the source that has one of these names gives way
    return {
        **known,
        **{k: v for k, v in image.fields.items() if k not in ("box", "label", "figures")},
        **known,
    } | figures


def _clipped(box: Sequence[float], width: int, height: int) -> list[float]:
    x1, y1, x2, y2 = box
    return [max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)]


def clipped_boxes(images: Sequence[MidogImage]) -> tuple[int, int]:
    """How many boxes begin left of or above the image, and how many of the others reach past its far edges."""
    boxes = [(figure["bbox"], image.size) for image in images for figure in image.figures]
    negative = [min(box[:2]) < 0 for box, _ in boxes]
    beyond = [box[2] > width or box[3] > height for box, (width, height) in boxes]
    return sum(negative), sum(b and not n for b, n in zip(beyond, negative, strict=True))


def midog_region_settings(annotations: str | os.PathLike) -> dict[str, Any]:
    """What the datalist of regions depends on, apart from the split."""
    return {"annotations_sha256": hashlib.sha256(Path(annotations).read_bytes()).hexdigest(), "content": "regions"}


def count_regions(splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each domain and split: `domain`, `split`, `regions`, `empty`, `non_mitotic`, `mitotic`."""
    rows = []
    for domain in sorted({r["domain"] for regions in splits.values() for r in regions}):
        for split, regions in splits.items():
            own = [r for r in regions if r["domain"] == domain]
            labels = [label for r in own for label in r["label"]]
            counts = {"regions": len(own), "empty": sum(not r["label"] for r in own)}
            counts |= {"non_mitotic": labels.count(0), "mitotic": labels.count(1)}
            rows.append({"domain": domain, "split": split, **counts})
    return rows
