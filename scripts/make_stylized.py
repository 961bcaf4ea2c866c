"""Redraw the training images of a datalist in other styles, for STRAP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from command_line import AtATime, Seed, run_command
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from shared.data import open_region, write_datalist
from shared.datasets.preparation import worker_count
from shared.datasets.stylized import Copy, Drawing, style_of, stylize_datalist
from shared.reports.gallery import draw_gallery, save_figure
from shared.utils import DataError
from shared.utils.settings import Device
from shared.utils.values import Choice, Number, Whole

SHOWN = 18  # images on the contact sheet
CROP = 192  # pixels of a region that it shows


def main(
    datalist: str,
    output: str,
    styles: str = "",
    encoder: str = "",
    decoder: str = "",
    alpha: Annotated[float, Number(0, 1)] = 1.0,
    content_size: Annotated[int, Whole(0)] = 256,
    style_size: Annotated[int, Whole(64)] = 256,
    lists: Annotated[str, Choice(("training", "all"))] = "training",
    seed: Seed = 0,
    device: Annotated[str, Device()] = "cpu",
    batch_size: Annotated[int, Whole(1)] = 16,
    processes: AtATime = None,
    overwrite: bool = False,
) -> None:
    """Redraw every training image in the style of a picture drawn at random, and write a datalist with the copies.

    Which picture is drawn goes by the image's path in the datalist and the seed. With the weights of AdaIN's network
    this is STRAP (Yamashita et al., arXiv 2102.01678); without them, mean and deviation of each band of a Laplacian
    pyramid are taken over from the style, which is ours. Without pictures the styles are textures that are made up.

    Copies have the size of their images: patches are PNG, regions tiled TIFF, redrawn tile by tile without seams, so
    that their boxes hold. They lie in a folder called like OUTPUT without .json, with settings.json and
    contact_sheet.png, which shows some images beside their copies: look at it. Run the same command again to go on.

    Args:
        datalist: of patches or regions, a .json file, which stays as it is.
        output: the datalist to write, a .json file.
        styles: folder of pictures to take the styles from, those below it included; textures by default.
        encoder: weights of VGG-19 in the layout of pytorch-AdaIN's vgg_normalised.pth.
        decoder: weights of its decoder in the layout of decoder.pth.
        alpha: how far towards the style.
        content_size: of AdaIN, pixels to which the shorter side of a patch is scaled on the way (1024 in STRAP, for
            tiles of 256); 0 leaves it. Regions are redrawn as they are.
        style_size: side in pixels to which pictures are scaled.
        lists: training, or all lists that are labelled; only what is trained on is read.
        seed: another one draws other pictures.
        device: where it is done, such as cuda.
        batch_size: patches at a time, in each process.
        processes: how many work at the same time; by default one for each core, 8 at most, and one on a GPU.
        overwrite: replace another datalist of that name; the copies stay.
    """
    source, target = (Path(path).expanduser().resolve() for path in (datalist, output))
    if target.suffix != ".json" or target == source:
        raise DataError(f"{target}: expected another .json file than --datalist. Choose another --output.")
    files = [Path(path).expanduser().resolve() if path else None for path in (styles, encoder, decoder)]
    drawing = Drawing(*files, alpha, content_size, style_size, seed, device)
    count = 1 if processes is None and torch.device(device).type == "cuda" else worker_count(processes)
    content, copies = stylize_datalist(source, target, drawing, lists, batch_size, count)
    write_datalist(target, content, overwrite)
    sheet = target.with_suffix("") / "contact_sheet.png"
    show(sheet, content, copies, drawing)
    print(f"{len(copies)} images redrawn, {content['stylized']['method']}, styles: {content['stylized']['styles']}")
    print(f"{sheet}\n{target}")


def show(path: Path, content: dict[str, Any], copies: Sequence[Copy], drawing: Drawing) -> None:
    """A contact sheet: images and, beside each, its copy; of regions what is around a figure, with its boxes."""
    entries = [
        e
        for part in content.values()
        if isinstance(part, list)
        for e in part
        if isinstance(e, dict) and "stylized" in e
    ]
    boxes = {(path.parents[1] / entry["stylized"]).resolve(): entry.get("box", []) for entry in entries}
    chosen = [copies[i] for i in np.linspace(0, len(copies) - 1, min(SHOWN, len(copies))).astype(int)]

    def draw(axes: Axes, item: tuple[Copy, bool]) -> None:
        copy, original = item
        region = open_region(copy.source if original else copy.target)
        size = min(CROP, *region.size)
        figures = np.reshape(boxes[copy.target], (-1, 4))
        centre = (figures[0, :2] + figures[0, 2:]) / 2 if len(figures) else np.array(region.size) / 2
        x, y = np.clip(np.round(centre - size / 2), 0, np.array(region.size) - size).astype(int).tolist()
        axes.imshow(region.read(x, y, size, size), interpolation="nearest")
        for x1, y1, x2, y2 in figures:
            axes.add_patch(Rectangle((x1 - x, y1 - y), x2 - x1, y2 - y1, fill=False, color="black", linewidth=0.8))
        axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
        axes.set_title(Path(copy.name).name if original else style_of(drawing, copy.name), fontsize=6)

    pairs = [(copy, original) for copy in chosen for original in (True, False)]
    title = f"Images, each with its copy beside it; {content['stylized']['method']}, α = {drawing.alpha:g}"
    save_figure(path, draw_gallery({title: pairs}, draw))


if __name__ == "__main__":
    run_command(main)
