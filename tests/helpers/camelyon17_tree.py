"""A made-up Camelyon17-WILDS: the folder that WILDS unpacks, with few and plain patches."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def make_tree(folder: Path, slides: int = 2, per_slide: int = 6, **changes: Any) -> Path:
    """Camelyon17-WILDS in small: twenty patients to a centre, RGBA patches; `changes` sets cells of the first row."""
    rows = []
    for centre in range(5):
        for slide in range(slides):
            name = f"patient_{20 * centre + 4 + slide:03d}_node_{slide}"
            (folder / "patches" / name).mkdir(parents=True)
            for i in range(per_slide):
                x, y = 3328 + 32 * i, 21792 + slide
                pixels = np.full((96, 96, 4), 255, np.uint8)
                pixels[..., 0] = i
                Image.fromarray(pixels).save(folder / f"patches/{name}/patch_{name}_x_{x}_y_{y}.png")
                known = {"patient": f"{20 * centre + 4 + slide:03d}", "node": slide, "x_coord": x, "y_coord": y}
                known |= {"tumor": i % 2, "slide": 10 * centre + slide, "center": centre, "split": int(i == 0)}
                rows.append({"": len(rows), **known})
    rows[0] |= changes
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder
