"""What a datalist says of labelled patches and regions: entries checked, counted, and written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqdm.contrib.concurrent import thread_map

from ..data import PatchEntry, RegionEntry, domain_names, read_rgb, write_datalist
from ..utils import DataError, fault_list

Entry = PatchEntry | RegionEntry


def count_patches(splits: Mapping[str, Sequence[PatchEntry]]) -> list[dict[str, Any]]:
    """A row for each domain and split: `domain`, `split`, `slides`, `negative`, `positive`."""

    rows = []
    for row, patches in _parts(splits):
        positive = sum(patch["label"] for patch in patches)
        row |= {"slides": len({p["slide"] for p in patches}), "negative": len(patches) - positive, "positive": positive}
        rows.append(row)
    return rows


def count_regions(splits: Mapping[str, Sequence[RegionEntry]]) -> list[dict[str, Any]]:
    """A row for each domain and split: `domain`, `split`, `regions`, `empty`, `non_mitotic`, `mitotic`."""

    rows = []
    for row, regions in _parts(splits):
        labels = [label for region in regions for label in region["label"]]
        row |= {"regions": len(regions), "empty": sum(not region["label"] for region in regions)}
        rows.append(row | {"non_mitotic": labels.count(0), "mitotic": labels.count(1)})
    return rows


def _parts(splits: Mapping[str, Sequence[Any]]) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """For each domain and split the beginning of a row, and the entries."""
    for domain in domain_names(entry for entries in splits.values() for entry in entries):
        for split, entries in splits.items():
            yield {"domain": domain, "split": split}, [entry for entry in entries if entry["domain"] == domain]


def check_image_files(
    source: str | os.PathLike,
    images: Sequence[str],
    num_workers: int = 4,
    size: tuple[int, int] | None = None,
    remedy: str = "Check --image_dir, and copy broken files again.",
) -> None:
    """Read every image, which has to be 8-bit RGB, see `read_rgb`, and of that width and height, if any are given.

    Raises:
        DataError: when some are missing, unreadable or of another size. It begins with the `source` of the list, says
            what to do (`remedy`), and names the first five.
    """

    def fault(image: str) -> str | None:
        try:
            found = read_rgb(image).size
        except DataError as e:
            return str(e)
        if size is not None and found != tuple(size):
            return f"{image}: has {found[0]} × {found[1]} pixels, expected {size[0]} × {size[1]}."
        return None

    found = thread_map(fault, images, max_workers=num_workers, desc="checking images", unit="file")
    if faults := [text for text in found if text]:
        summary = f"{source}: {len(faults)} of {len(images)} images cannot be used. {remedy}"
        raise DataError(summary + fault_list(faults, 5))


def write_histology_datalist(
    path: str | os.PathLike,
    name: str,
    labels: Mapping[str, int],
    splits: Mapping[str, Sequence[Entry]],
    facts: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a datalist of patches or regions that are not synthetic, as `write_datalist` does.

    It holds the data set's `name`, its `labels` (name → id), the other `facts` and the entries of each of the `splits`.
    """
    content = {"name": name, "labels": {str(i): label for label, i in labels.items()}, "synthetic": False}
    write_datalist(path, content | dict(facts or {}) | dict(splits), overwrite)
