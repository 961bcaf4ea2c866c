"""What a datalist says of labelled patches and regions: entries checked, counted, and written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm.contrib.concurrent import thread_map

from ..data import PatchEntry, RegionEntry, domain_names, read_rgb, write_datalist
from ..utils import DataError, fault_list

Entry = PatchEntry | RegionEntry


def count_patches(splits: Mapping[str, Sequence[PatchEntry]]) -> list[dict[str, Any]]:
    """A row for each domain and split: `domain`, `split`, `slides`, `negative`, `positive`."""

    def count(patches: Sequence[PatchEntry]) -> dict[str, int]:
        positive = sum(patch["label"] for patch in patches)
        return {"slides": len({p["slide"] for p in patches}), "negative": len(patches) - positive, "positive": positive}

    return _count(splits, count)


def count_regions(splits: Mapping[str, Sequence[RegionEntry]]) -> list[dict[str, Any]]:
    """A row for each domain and split: `domain`, `split`, `regions`, `empty`, `non_mitotic`, `mitotic`."""

    def count(regions: Sequence[RegionEntry]) -> dict[str, int]:
        labels = [label for region in regions for label in region["label"]]
        empty = sum(not region["label"] for region in regions)
        counts = {"regions": len(regions), "empty": empty}
        return counts | {"non_mitotic": labels.count(0), "mitotic": labels.count(1)}

    return _count(splits, count)


def _count(
    splits: Mapping[str, Sequence[Entry]], count: Callable[[Sequence[Any]], dict[str, int]]
) -> list[dict[str, Any]]:
    return [
        {"domain": domain, "split": split, **count([entry for entry in entries if entry["domain"] == domain])}
        for domain in domain_names(entry for entries in splits.values() for entry in entries)
        for split, entries in splits.items()
    ]


def check_image_files(
    source: str | os.PathLike,
    images: Sequence[str],
    num_workers: int = 4,
    size: tuple[int, int] | None = None,
    remedy: str = "Check --image_dir, and copy broken files again.",
) -> None:
    """Read every image, which has to be 8-bit RGB, see `read_rgb`.

    Args:
        source: what lists the images; it begins the message.
        images: paths.
        num_workers: files opened at a time.
        size: the width and height that each has; None where any will do.
        remedy: what to do, at the end of the message.

    Raises:
        DataError: when some are missing, unreadable or of another size; the first five are named.
    """

    def fault(image: str) -> str | None:
        try:
            found = read_rgb(image).size
        except DataError as e:
            return str(e)
        if size is not None and found != tuple(size):
            return f"{image}: has {found[0]} × {found[1]} pixels, expected {size[0]} × {size[1]}."
        return None

    faults = thread_map(fault, images, max_workers=num_workers, desc="checking images", unit="file")
    found = [text for text in faults if text]
    if found:
        summary = f"{source}: {len(found)} of {len(images)} images cannot be used. {remedy}"
        raise DataError(summary + fault_list(found, 5))


def write_histology_datalist(
    path: str | os.PathLike,
    name: str,
    labels: Mapping[str, int],
    splits: Mapping[str, Sequence[Entry]],
    facts: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a datalist of patches or regions that are not synthetic, as `write_datalist` does.

    Args:
        path: a .json file, which the images' paths are relative to.
        name, labels, facts: of the data set: its name, label name → id, and what else the datalist says of it.
        splits: name of the list → its entries.
        overwrite: replace another datalist.
    """
    content = {"name": name, "labels": {str(i): label for label, i in labels.items()}, "synthetic": False}
    write_datalist(path, content | dict(facts or {}) | dict(splits), overwrite)
