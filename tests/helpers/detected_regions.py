"""Made-up regions with figures, and what a detector might find in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = 224
PLACES = np.stack(np.meshgrid(*[np.arange(28, 220, 40)] * 2), axis=-1).reshape(-1, 2)  # centres of anchors


def regions(folder: Path, domains: Sequence[str] = ("XR", "CS", "S360"), count: int = 4) -> list[dict[str, Any]]:
    """Images with a dark square at each figure; every scanner has slides of the same names."""
    found = []
    for d, domain in enumerate(domains):
        for i in range(count):
            xy = np.random.default_rng(10 * d + i).permutation(PLACES)[:12]
            pixels = np.full((SIZE, SIZE, 3), (230, 200, 220), dtype=np.uint8)
            for x, y in xy:
                pixels[y - 8 : y + 8, x - 8 : x + 8] = (60, 20, 90)
            path = folder / "images" / domain / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            box = np.concatenate([xy - 25, xy + 25], axis=1).tolist()
            names = {"image": str(path), "case": f"{domain}/{i}.png", "domain": domain, "slide": f"{i // 2}.tiff"}
            found.append({**names, "box": box, "label": [1, 1, 0] * 4})
    return found


def detections(data: Sequence[dict[str, Any]]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each region most figures, and as many places beside them; a false one scores less on the average."""
    result = []
    for i, region in enumerate(data):
        rng = np.random.default_rng(i)
        true = np.array(region["box"]).reshape(-1, 4)[:, :2] + 25
        rest = np.array([p for p in rng.permutation(PLACES).tolist() if p not in true.tolist()])
        points = np.concatenate([true[:10], rest[:10]]).astype(int)
        classes = np.concatenate([region["label"][:10], rng.permutation([1, 0] * 5)]).astype(int)
        right = np.arange(len(points)) < len(true[:10])
        scores = 1 / (1 + np.exp(-rng.normal(np.where(right, 1.0, -1.0))))
        result.append((points, scores.astype(np.float32), classes))
    return result


def columns(data: Sequence[dict[str, Any]], domains: Sequence[str]) -> list[list[Any]]:
    own = [(f, r) for f, r in zip(detections(data), data, strict=True) if r["domain"] in domains]
    found = list(map(list, zip(*(f for f, _ in own), strict=True)))
    true = [np.array(r["box"]).reshape(-1, 4)[:, :2] + 25 for _, r in own]
    return [*found, true, [np.array(r["label"], dtype=int) for _, r in own]]
