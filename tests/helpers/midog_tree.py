"""A made-up MIDOG: small TIFF files with nuclei, and the JSON file that annotates them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (260, 220)  # of the made-up regions: width, height
BOXES = ([100, 80, 150, 130], [-27, 60, 23, 110], [60.5, 190.5, 110.5, 240.5], [230, -20, 280, 30], [-26, 100, 24, 150])
NUMBERS = (*range(1, 5), *range(51, 55), *range(101, 105), *range(151, 153))  # four of each scanner, two unlabelled


def region(number: int) -> np.ndarray:
    """Pink tissue with purple nuclei, another for each number."""
    rng = np.random.default_rng(number)
    pixels = np.full((SIZE[1], SIZE[0], 3), (225, 165, 205)) + rng.integers(-8, 8, (SIZE[1], SIZE[0], 3))
    rows, columns = np.ogrid[: SIZE[1], : SIZE[0]]
    for x, y in nuclei(number):
        pixels[(columns - x) ** 2 + (rows - y) ** 2 < 14**2] = (shade(x, y), 60, 140)
    return pixels.astype(np.uint8)


def shade(x: int, y: int) -> int:
    return 95 + x % 40 + y % 40 // 4


def nuclei(number: int) -> list[tuple[int, int]]:
    return [(40 + 90 * i, 44 + 88 * j) for i in range(3) for j in range(2) if (i, j) != (number % 3, 0)]


def annotations(numbers: tuple[int, ...] = NUMBERS, description: str = "(MIDOG) 2021 - Training set") -> dict[str, Any]:
    known = {"width": SIZE[0], "height": SIZE[1], "license": 1}
    images = [{"id": n, "file_name": f"{n:03d}.tiff", **known} for n in numbers]
    boxes = [(n, k, box) for n in numbers if not 151 <= n <= 200 for k, box in enumerate(BOXES)]
    found = [{"id": i, "image_id": n, "category_id": 1 + k % 2, "bbox": b} for i, (n, k, b) in enumerate(boxes, 1)]
    categories = [{"id": 1, "name": "mitotic figure"}, {"id": 2, "name": "not mitotic figure"}]
    info = {"description": description}
    return {"info": info, "images": images, "categories": categories, "annotations": found}


def write_tree(folder: Path, content: dict[str, Any] | None = None) -> tuple[Path, Path]:
    """The JSON file and the folder of a made-up MIDOG, its TIFF files compressed in several ways."""
    content = content or annotations()
    (folder / "images").mkdir(parents=True)
    for i, image in enumerate(content["images"]):
        compression = (None, "tiff_lzw", "tiff_deflate")[i % 3]
        path = folder / "images" / image["file_name"]
        Image.fromarray(region(int(path.stem))).save(path, compression=compression)
    (folder / "MIDOG.json").write_text(json.dumps(content))
    return folder / "MIDOG.json", folder / "images"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
