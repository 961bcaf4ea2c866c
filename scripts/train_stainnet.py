"""Train a StainNet, for `--stain_weights` of the histology bundles."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from command_line import Seed, run_command
from matplotlib.axes import Axes
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from shared.data import data_digest, dataset_info, leaked_slides, source_digest
from shared.datasets.stain_pairs import PAIRS, PIXELS, StainPair, Teacher, draw_pixels, paired_images, read_pairs
from shared.datasets.stylized import read_datalist
from shared.networks import StainNet
from shared.reports.gallery import draw_gallery, save_figure
from shared.transforms import NormalizeStain, NormalizeStaind
from shared.transforms.stain_norm import METHODS
from shared.utils import DataError, atomic_path, prepare_device, text_table, writable_folder, write_json
from shared.utils.settings import Device
from shared.utils.values import Choice, Number, Several, Text, Whole

logger = logging.getLogger("shared.train_stainnet")

LEARNING_RATE, BATCH_SIZE = 0.01, 10  # those of the paper
STEPS = 10_000  # what takes a minute or two on a core
SHOWN = 4  # images of a domain on the contact sheet
CROP = 192  # pixels of an image that it shows
ALL = "all trained on"

Picture = tuple[Tensor, str]  # and its title
Domains = Annotated[Sequence[str], Several(Text("the name of a domain"), distinct=True, empty=True)]


class Lesson(NamedTuple):
    """What is learned from, and what it is measured by.

    Attributes:
        training, held_out: entries for `read_pairs`.
        teachers: for each of these; None where the entries name pictures.
        facts: on the teacher and the data, as they stand in the JSON file.
    """

    training: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    teachers: tuple[Teacher | None, Teacher | None]
    facts: dict[str, Any]


def main(
    output: str,
    datalist: str = "",
    teacher: Annotated[str, Choice(METHODS)] | None = None,
    reference: str = "",
    domains: Domains = (),
    split: str = "training",
    val_split: str = "validation",
    source_dir: str = "",
    teacher_dir: str = "",
    held_out: Annotated[float, Number(above=0, most=0.5)] = 0.1,
    images: Annotated[int, Whole(1)] = 2000,
    epochs: Annotated[int, Whole(1)] | None = None,
    seed: Seed = 0,
    device: Annotated[str, Device()] = "cpu",
    overwrite: bool = False,
) -> None:
    """Train a StainNet (Kang et al., Front. Med. 2021) to do what another stain normaliser does.

    It learns from the images of a --datalist, normalised slide by slide by Macenko's or Reinhard's method, or from
    pictures in --source_dir and, under the same names, as any normaliser has made them, in --teacher_dir. As in the
    paper by L1, with SGD whose rate falls from 0.01 as a cosine, 10 images a step; from 1024 pixels of each, drawn at
    random, since it sees each by itself. Of images above 256 pixels up to 8 tiles of that size are taken, with tissue.

    Beside the weights, in the layout of the published checkpoints, stand a .json file with the settings and the error
    on images that were held out, and a .png file with some of these as they are, as the teacher makes them, and as
    StainNet does: look at it. A run takes a minute or two, and writes at its end; an interrupted one is begun again.

    Args:
        output: the weights to write, a .pth file.
        datalist: of patches or regions, a .json file.
        teacher: of the images of a datalist, by default macenko.
        reference: an image whose stains the teacher aims at; published ones by default.
        domains: scanners to train on, by default all; those left out are measured alone.
        split: list of the datalist to train on.
        val_split: list that is held out.
        source_dir: folder of pictures, those below it included.
        teacher_dir: folder of the same pictures, normalised.
        held_out: share of the pairs of pictures that is held out.
        images: and tiles of larger ones, at most so many to train on, and as many held out, drawn at random.
        epochs: rounds through the images, 300 in the paper; by default as many as make 10,000 steps.
        seed: of draws, weights and their order; the same one gives the same file on the same machine.
        device: where it is done, such as cuda.
        overwrite: replace what an earlier run has written.
    """
    given = [Path(path).expanduser().resolve() for path in (datalist, reference, source_dir, teacher_dir) if path]
    target = check_output(Path(output).expanduser().resolve(), given, overwrite)
    if datalist and not (source_dir or teacher_dir):
        lesson = from_datalist(given, teacher or METHODS[0], domains, split, val_split)
    elif source_dir and teacher_dir and not (datalist or teacher or reference or domains):
        lesson = from_folders(given, held_out, seed)
    else:
        raise DataError(
            "Give either --datalist, with which go --teacher, --reference and --domains, or both --source_dir and "
            "--teacher_dir."
        )
    prepare_device(device, False, False, torch.device(device).type == "cuda")
    training, held = (
        read_pairs(entries, images, seed, by)
        for entries, by in zip((lesson.training, lesson.held_out), lesson.teachers, strict=True)
    )
    source, wanted = draw_pixels(training, seed)
    epochs = epochs or math.ceil(STEPS / math.ceil(len(source) / BATCH_SIZE))
    network = train(source, wanted, epochs, seed, device)
    rows, shown = measure(network, held, lesson.training)
    settings = {"images": images, "pixels": PIXELS, "epochs": epochs, "learning_rate": LEARNING_RATE}
    settings |= {"batch_size": BATCH_SIZE, "seed": seed, "device": device}
    facts = {**lesson.facts, "settings": settings, "error": {"unit": "grey levels of 255", "held_out": rows}}
    write(target, network, facts, shown)
    print(f"Mean distance to the teacher on images held out, in grey levels of 255\n{text_table(rows)}")
    warn_of(rows)
    print(f"{target.with_suffix('.png')}\n{target.with_suffix('.json')}\n{target}")


def check_output(target: Path, given: Sequence[Path], overwrite: bool) -> Path:
    """The same path, where weights, JSON and PNG can be written, and nothing is lost by it."""
    if target.suffix not in (".pt", ".pth"):
        raise DataError(f"{target}: expected a .pth file. Choose another --output.")
    files = [target, target.with_suffix(".json"), target.with_suffix(".png")]
    if within := [path for path in given if any(file.is_relative_to(path) for file in files)]:
        raise DataError(
            f"{target}: {', '.join(file.name for file in files)} would be written over or into {within[0]}, which is "
            "read, and stays as it is. Choose another --output."
        )
    if there := [file for file in files if file.exists() and not (overwrite and file.is_file())]:
        raise DataError(f"{there[0]}: is there already. Choose another --output, or replace it with --overwrite.")
    writable_folder(target.parent)
    return target


def from_datalist(given: Sequence[Path], method: str, domains: Sequence[str], split: str, val_split: str) -> Lesson:
    """Images of a datalist, whose teacher is fitted to each slide; behind the datalist the reference, if any."""
    if split == val_split:
        raise DataError(f"--split and --val_split are both {split}: nothing would be held out. Choose another list.")
    path, reference = given[0], given[1] if len(given) > 1 else None
    found = read_datalist(path)
    training, held_out = found.images(split, list(domains) or None), found.images(val_split)
    shared, slides = leaked_slides(training, held_out)
    if shared:
        logger.warning(
            "%s: %d of the %d slides in '%s' are in '%s', too: the error says little about new slides.",
            path,
            len(shared),
            slides,
            val_split,
            split,
        )
    normalizer = NormalizeStain(method, reference)
    teachers = tuple(NormalizeStaind("image", normalizer, entries=part) for part in (training, held_out))
    origin = {"file": reference.name, "sha256": source_digest(reference)} if reference else "published"
    data = {**dataset_info(path), "split": split, "val_split": val_split, "shared_slides": len(shared)}
    facts = {"teacher": {"method": method, "reference": origin, "fit": normalizer.content}}
    return Lesson(training, held_out, teachers, facts | {"data": data | counts(training, held_out)})


def from_folders(given: Sequence[Path], share: float, seed: int) -> Lesson:
    """Pairs of pictures in two folders, of which a share, drawn at random, is held out."""
    source_dir, teacher_dir = given
    if source_dir == teacher_dir:
        raise DataError(f"{source_dir}: is both --source_dir and --teacher_dir: nothing could be learned.")
    pairs = paired_images(source_dir, teacher_dir)
    if len(pairs) < 2:
        raise DataError(f"{source_dir}: holds one picture. Expected at least two: one to train on, one held out.")
    order, count = np.random.default_rng(seed).permutation(len(pairs)), math.ceil(share * len(pairs))
    held_out, training = ([pairs[i] for i in part] for part in (order[:count], order[count:]))
    data = {"name": source_dir.name, "held_out": share} | counts(training, held_out)
    return Lesson(training, held_out, (None, None), {"teacher": {"pictures": teacher_dir.name}, "data": data})


def counts(training: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many images there are, of which domains, and what tells them from others."""
    names = sorted({entry["domain"] for entry in training if "domain" in entry})
    facts = {"train_domains": names} if names else {}
    return {**facts, "images": len(training), "held_out_images": len(held_out), "digest": data_digest(training)}


def train(source: Tensor, wanted: Tensor, epochs: int, seed: int, device: str) -> StainNet:
    """A network that makes of pixels, uint8 (N, 3, count), those that are wanted."""
    torch.manual_seed(seed)
    network = StainNet().to(device)
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    source, wanted = source.to(device)[..., None], wanted.to(device)[..., None]
    bar = tqdm(range(epochs), desc="training", unit="epoch")
    for _ in bar:
        total = torch.zeros((), device=device)
        for chosen in torch.randperm(len(source)).to(device).split(BATCH_SIZE):
            loss = F.l1_loss(network(source[chosen] / 127.5 - 1), wanted[chosen] / 127.5 - 1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(chosen)
        schedule.step()
        bar.set_postfix(grey_levels=f"{127.5 * total.item() / len(source):.2f}", refresh=False)
    return network


def measure(
    network: StainNet, pairs: Iterable[StainPair], training: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, list[Picture]]]:
    """How far images, and what the network makes of them, are from what the teacher makes of them.

    Returns:
        rows of a table: mean absolute differences, in grey levels of 255, in each domain, and in all that were trained
        on; and the first few images of each domain, three pictures for each.
    """
    device = next(network.parameters()).device
    seen = {entry.get("domain", PAIRS) for entry in training}
    sums, shown = defaultdict(lambda: np.zeros(4)), defaultdict(list)
    for pair in pairs:
        found = network.normalize(pair.source.to(device)).cpu()
        far = [(image.float() - pair.wanted).abs().sum().item() for image in (pair.source, found)]
        for name in (pair.domain, *([ALL] if pair.domain in seen else [])):
            sums[name] += (1, pair.wanted.numel(), *far)
        if len(shown[pair.domain]) < 3 * SHOWN:
            titles = (Path(pair.name).name, "teacher", "StainNet")
            shown[pair.domain] += zip((pair.source, pair.wanted, found), titles, strict=True)
    rows = []
    for name in sorted(shown) + [ALL] * (len(seen & shown.keys()) > 1):
        count, values, before, after = sums[name].tolist()
        error = {"images": int(count), "untouched": round(before / values, 3), "stainnet": round(after / values, 3)}
        rows.append({"domain": name, "trained_on": name in seen | {ALL}, **error})
    return rows, shown


def warn_of(rows: Sequence[Mapping[str, Any]]) -> None:
    """Say where it has not learned what it should."""
    worse = [row for row in rows if row["stainnet"] >= row["untouched"]]
    if worse:
        named = ", ".join(f"{row['domain']} ({row['stainnet']} of {row['untouched']})" for row in worse)
        logger.warning("It is no closer to the teacher than the images themselves: %s.", named)


def write(target: Path, network: StainNet, facts: Mapping[str, Any], shown: Mapping[str, Sequence[Picture]]) -> None:
    """The weights and what stands beside them; the weights as the last, so that they never stand alone."""

    def show(axes: Axes, picture: Picture) -> None:
        pixels, title = picture
        height, width = (min(CROP, length) for length in pixels.shape[1:])
        y, x = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
        axes.imshow(pixels[:, y : y + height, x : x + width].permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_title(title, fontsize=6)

    titles = {
        row["domain"]: f"{row['domain']}{'' if row['trained_on'] else ', not trained on'}: "
        f"{row['untouched']:.1f} grey levels from the teacher, as StainNet makes them {row['stainnet']:.1f}"
        for row in facts["error"]["held_out"]
    }
    sheet = draw_gallery({titles[domain]: shown[domain] for domain in sorted(shown)}, show, "Images held out")
    with atomic_path(target) as temporary:
        torch.save(network.cpu().state_dict(), temporary)
        save_figure(target.with_suffix(".png"), sheet)
        write_json(target.with_suffix(".json"), {"weights": source_digest(temporary), **facts})


if __name__ == "__main__":
    run_command(main)
