"""Datalists of histology, labelled patches or regions with boxes: read once, checked, and chosen from by domain."""

from __future__ import annotations

import json
import math
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ..utils import DataError, read_json_object
from ..utils.values import MPP, Number, OrNone, check_value
from .datalist import DATALIST_REMEDY, FILE, check_files_exist, check_names, get_list
from .entries import PatchEntry, RegionEntry, domain_names, has_names, is_class, is_unlabelled, scanner_name
from .regions import open_region

MPP_TOLERANCE = 0.15  # scanners of one magnification differ by less; networks are trained on pixels as they are


class HistologyDatalist(ABC):
    """A datalist that is read once: what those of patches and of regions have in common.

    Args:
        path: a JSON file; the files that it names are relative to its folder.

    Raises:
        DataError: when it is missing or not JSON.
    """

    form: ClassVar[str]  # what is expected, for messages
    nouns: ClassVar[tuple[str, str]]  # what the entries are, one and several
    keys: ClassVar[tuple[str, ...]]  # what is read of an entry, where it has it, beside image, domain and slide
    undefined: ClassVar[str]  # what a validation without both classes leaves open

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.content = read_json_object(self.path, self.form, DATALIST_REMEDY)

    @abstractmethod
    def fault(self, entry: object, split: str) -> str | None:
        """What is wrong with an entry of a list, or None."""

    @abstractmethod
    def lack(self, entries: Sequence[Mapping[str, Any]]) -> str | None:
        """What none of these entries is or has, and one should to learn from them or to choose by them; or None."""

    def labels(self) -> dict[str, int]:
        """The names of the classes 0 and 1, name → id.

        Raises:
            DataError: when the datalist does not name these two.
        """
        found = self.content.get("labels")
        named = isinstance(found, dict) and set(found) == {"0", "1"} and all(isinstance(n, str) for n in found.values())
        if not named or found["0"] == found["1"]:
            raise DataError(
                f"{self.path}: 'labels' is {found}, expected the names of the two classes, as in "
                '{"0": "non_mitotic", "1": "mitotic"}.'
            )
        return {found["0"]: 0, found["1"]: 1}

    def image_lists(self) -> dict[str, list[dict[str, Any]]]:
        """The lists of images by their names, as they stand in the file."""
        return {name: value for name, value in self.content.items() if _holds_images(value)}

    def entries(self, split: str) -> list[dict[str, Any]]:
        """The entries of a list, checked.

        Raises:
            DataError: when the list is missing, empty or no list, or an entry is wrong.
        """
        entries = get_list(self.path, self.content, split, self.form)
        for i, entry in enumerate(entries):
            fault = self.fault(entry, split)
            if fault:
                image = f", {entry['image']}" if isinstance(entry, dict) and isinstance(entry.get("image"), str) else ""
                raise DataError(f"{self.path}: entry {i} of '{split}'{image}: {fault}")
            check_names(self.path, split, i, entry, ["image"])
        return entries

    def choose(
        self,
        split: str,
        domains: Sequence[str] | None = None,
        whole_unseen: bool = False,
        seen_domains: Sequence[str] | None = None,
        stylized: bool = False,
    ) -> list[dict[str, Any]]:
        """What a run reads of a split. Arguments, result and errors are those of `load_patches`."""
        domains = self.resolve_domains(domains)
        entries = self._with_whole_unseen(split, seen_domains) if whole_unseen else self.entries(split)
        chosen = self._of_domains(split, entries, domains)
        self._check_classes(split, chosen, domains)
        items = self._with_full_paths(split, chosen)
        return self._with_copies(split, items, chosen) if stylized else items

    def images(self, split: str, domains: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The same for what looks at images alone: whatever their classes, but some of each of the domains."""
        entries, domains = self.entries(split), self.resolve_domains(domains)
        for name in domains or ():
            self._of_domains(split, entries, [name])
        return self._with_full_paths(split, self._of_domains(split, entries, domains))

    def _of_domains(
        self, split: str, entries: Sequence[dict[str, Any]], domains: Sequence[str] | None
    ) -> list[dict[str, Any]]:
        chosen = [e for e in entries if domains is None or e["domain"] in domains]
        if not chosen:
            wanted = f"of the domains {', '.join(domains)}" if domains else "labelled"
            raise DataError(
                f"{self.path}: no {self.nouns[0]} in the list '{split}' is {wanted}. It has labelled {self.nouns[1]} "
                f"of {_count_names(e['domain'] for e in entries)}."
            )
        return chosen

    def resolve_domains(self, domains: Sequence[str] | None) -> list[str] | None:
        """The domains as the datalist calls them; scanners may be given by any of their names. None stays None.

        Raises:
            DataError: when they are no list of names, or the datalist has no such domain.
        """
        if domains is None:
            return None
        several = isinstance(domains, Sequence) and not isinstance(domains, str)
        if not several or not domains or not all(isinstance(d, str) for d in domains):
            raise DataError(f"The domains are {domains!r}, expected a list of names such as \"['XR','CS']\".")
        entries = [e for value in self.content.values() if isinstance(value, list) for e in value]
        known = {e["domain"] for e in entries if isinstance(e, dict) and isinstance(e.get("domain"), str)}
        found = [d if d in known else scanner_name(d) for d in domains]
        unknown = [d for d, name in zip(domains, found, strict=True) if name not in known]
        if unknown:
            raise DataError(f"{self.path}: there is no domain {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")
        return found

    def _with_whole_unseen(self, split: str, seen: Sequence[str] | None) -> list[dict[str, Any]]:
        """The entries of a split, but of its domains that the network has not seen those of all labelled lists."""
        entries = self.entries(split)
        if seen is None:
            raise DataError(
                f"whole_unseen takes all {self.nouns[1]} of the domains that the network was not trained on, and what "
                "it was trained on is not known: its model.json, with 'train_domains', is not beside the weights. Copy "
                "it there, or set whole_unseen to false."
            )
        unseen = {e["domain"] for e in entries} - set(seen)
        everything = [e for name in self.image_lists() if name != "unlabelled" for e in self.entries(name)]
        return [e for e in entries if e["domain"] in seen] + [e for e in everything if e["domain"] in unseen]

    def _check_classes(self, split: str, entries: Sequence[Mapping[str, Any]], domains: Sequence[str] | None) -> None:
        """See that there is something to learn in each domain, and to choose by in the validation."""
        if split == "training":
            names = domains or domain_names(entries)
            parts = {f"the domain {name}": [e for e in entries if e["domain"] == name] for name in names}
            why = (
                f"a network would learn to tell the domain and not the class. Add {self.nouns[1]}, or leave the domain "
                "out with --train_domains."
            )
        elif split.endswith("validation"):  # that of another hospital in Camelyon17-WILDS is "ood_validation"
            parts = {f"the domains {_count_names(e['domain'] for e in entries)}": entries}
            why = f"{self.undefined}. Move a slide with some into '{split}'."
        else:
            return
        for where, part in parts.items():
            lack = self.lack(part)
            if lack:
                raise DataError(
                    f"{self.path}: in {split}, none of the {len(part)} {self.nouns[1]} of {where} {lack}: {why}"
                )

    def _with_full_paths(self, split: str, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        # nothing else: a field that is missing in one entry could not be put into a batch
        items = [
            {"image": str(self.path.parent / e["image"]), "case": e["image"]}
            | {key: e[key] for key in (*self.keys, "domain", "slide") if key in e}
            for e in entries
        ]
        twice = [case for case, count in Counter(item["case"] for item in items).items() if count > 1]
        if twice:
            raise DataError(
                f"{self.path}: '{split}' lists {twice[0]} more than once ({len(twice)} such). List each "
                f"{self.nouns[0]} once."
            )
        check_files_exist(self.path, items, ["image"], f"'{split}'")
        return items

    def _with_copies(
        self, split: str, items: Sequence[dict[str, Any]], entries: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """The items with the full paths of their copies in other styles, which the entries name."""
        if lacking := [entry["image"] for entry in entries if not FILE.accepts(entry.get("stylized"))]:
            raise DataError(
                f"{self.path}: {len(lacking)} of the {len(entries)} {self.nouns[1]} of '{split}' name no copy in "
                f"another style under 'stylized', such as {lacking[0]}. Make the copies with scripts/make_stylized.py, "
                "and give the datalist that it writes; or train without strap.json."
            )
        found = [i | {"stylized": str(self.path.parent / e["stylized"])} for i, e in zip(items, entries, strict=True)]
        check_files_exist(self.path, found, ["stylized"], f"'{split}' as copies in other styles")
        return found


class PatchDatalist(HistologyDatalist):
    """The patches that are labelled; others may stand among them."""

    form = (
        'a datalist of patches: {"labels": {"0": "non_mitotic", "1": "mitotic"}, "training": [{"image": "a path", '
        '"label": 0 or 1, "domain": "a scanner", "slide": "a name"}, ...], "validation": [...], "test": [...]}'
    )
    nouns = ("patch", "patches")
    keys = ("label",)
    undefined = "the AUC, by which the best epoch is chosen, is undefined"

    def entries(self, split: str) -> list[dict[str, Any]]:
        return [e for e in super().entries(split) if not is_unlabelled(e)]

    def fault(self, entry: object, split: str) -> str | None:
        if is_unlabelled(entry) or (has_names(entry) and is_class(entry.get("label"))):
            return None
        found = json.dumps(entry)[:300]
        return f"found {found}, expected an image, a label of 0 or 1, a domain and a slide, as in {self.form}."

    def lack(self, entries: Sequence[Mapping[str, Any]]) -> str | None:
        absent = {0, 1} - {e["label"] for e in entries}
        return f"is of class {' or '.join(map(str, sorted(absent)))}" if absent else None


class RegionDatalist(HistologyDatalist):
    """The entries of "unlabelled" have neither boxes nor labels, all others have both.

    Raises:
        DataError: when the file states no or another `box_mode` than "xyxy", a wrong `mpp`, or an unlabelled image
            in another list.
    """

    form = (
        'a datalist of regions: {"labels": {"0": "non_mitotic", "1": "mitotic"}, "box_mode": "xyxy", "training": '
        '[{"image": "a path", "box": [[x1, y1, x2, y2], ...], "label": [0 or 1, ...], "domain": "a scanner", "slide": '
        '"a name"}, ...], "validation": [...], "test": [...], "unlabelled": [{"image": "a path", "labelled": false, '
        '"domain": ..., "slide": ...}, ...]}'
    )
    nouns = ("region", "regions")
    keys = ("box", "label", "mpp")
    undefined = "no score threshold can be chosen"

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__(path)
        mode, mpp = self.content.get("box_mode"), self.content.get("mpp")
        if mode != "xyxy":
            raise DataError(
                f"{path}: 'box_mode' is {json.dumps(mode)}, expected \"xyxy\": boxes are [x1, y1, x2, y2] in pixels. "
                "Convert them, and state it."
            )
        check_value(f"{path}: 'mpp'", mpp, OrNone(MPP, "as the file says"))
        found: dict[str, str] = {}
        for name, entries in self.image_lists().items():
            for image in {os.path.normpath(e["image"]) for e in entries if isinstance(e["image"], str)}:
                if found.setdefault(image, name) != name and "unlabelled" in (found[image], name):
                    raise DataError(
                        f"{path}: {image} is both in '{found[image]}' and in '{name}'. List each image once: it has "
                        "been annotated or not."
                    )

    def fault(self, entry: object, split: str) -> str | None:
        if not has_names(entry):
            found = json.dumps(entry)[:300]
            return f"found {found}, expected an image, a domain and a slide, as in {self.form}."
        for key, kind in (("mpp", MPP), ("width", Number(above=0)), ("height", Number(above=0))):
            if entry.get(key) is not None and not kind.accepts(entry[key]):
                return f"'{key}' is {json.dumps(entry[key])}, expected {kind.expected}."
        if split == "unlabelled":
            if not is_unlabelled(entry) or "box" in entry or "label" in entry:
                return (
                    'it is in "unlabelled", expected "labelled": false and neither box nor label. Move it to a split.'
                )
            return None
        if entry.get("labelled", True) is not True:
            return (
                f'"labelled" is {json.dumps(entry["labelled"])}: an image that nobody annotated would count as one '
                'without a figure. Move it to the list "unlabelled".'
            )
        boxes, labels = entry.get("box"), entry.get("label")
        if not isinstance(boxes, list) or not isinstance(labels, list):
            return f"its box and label are not both lists. Expected {self.form}; both empty where there is no figure."
        if len(boxes) != len(labels):
            return f"has {len(boxes)} boxes and {len(labels)} labels, expected one label a box."
        faults = (self._figure_fault(box, label, entry) for box, label in zip(boxes, labels, strict=True))
        return next((f"box {i}, {json.dumps(boxes[i])}: {fault}" for i, fault in enumerate(faults) if fault), None)

    def _with_full_paths(self, split: str, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        items = super()._with_full_paths(split, entries)
        for item, entry in zip(items, entries, strict=True):
            if entry.get("box") and not (entry.get("width") and entry.get("height")):
                size = dict(zip(("width", "height"), open_region(item["image"], item.get("mpp")).size, strict=True))
                for i, (box, label) in enumerate(zip(entry["box"], entry["label"], strict=True)):
                    if fault := self._figure_fault(box, label, size):
                        raise DataError(
                            f"{self.path}: in '{split}', {entry['image']}: box {i}, {json.dumps(box)}: {fault}"
                        )
        return items

    def _figure_fault(self, box: object, label: object, entry: Mapping[str, Any]) -> str | None:
        if not isinstance(box, list) or len(box) != 4 or not all(map(Number().accepts, box)):
            return "expected [x1, y1, x2, y2], four finite numbers."
        x1, y1, x2, y2 = box
        remedy = "take it out together with its label."
        if x2 <= x1 or y2 <= y1:
            return f"has no area: expected x1 < x2 and y1 < y2. Is it x, y, width, height? Correct it, or {remedy}"
        width, height = entry.get("width"), entry.get("height")
        if x2 <= 0 or y2 <= 0 or x1 >= (width or math.inf) or y1 >= (height or math.inf):
            return f"lies outside of its image of {width or '?'} × {height or '?'} pixels: {remedy}"
        if not is_class(label):
            known = ", ".join(f"{i} ({name})" for name, i in self.labels().items())
            return f"its label is {json.dumps(label)}, which is no known category. Expected {known}."
        return None

    def _with_copies(
        self, split: str, items: Sequence[dict[str, Any]], entries: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        found = super()._with_copies(split, items, entries)
        for item in found:
            sizes = [open_region(item[key]).size for key in ("image", "stylized")]
            if sizes[0] != sizes[1]:
                raise DataError(
                    "{}: has {} × {} pixels, and {}, of which it is the copy, {} × {}: its boxes would not hold. Make "
                    "it again.".format(item["stylized"], *sizes[1], item["image"], *sizes[0])
                )
        return found

    def lack(self, entries: Sequence[Mapping[str, Any]]) -> str | None:
        return None if any(1 in e["label"] for e in entries) else "has a mitotic figure"


def load_patches(
    path: str | os.PathLike,
    split: str,
    domains: Sequence[str] | None = None,
    whole_unseen: bool = False,
    seen_domains: Sequence[str] | None = None,
    stylized: bool = False,
) -> list[PatchEntry]:
    """The labelled patches of one split of a datalist, checked, in the order of the list.

    Args:
        path: the datalist, a JSON file; the files that it names are relative to its folder.
        split: `"training"`, `"validation"`, `"test"` or another list of the file.
        domains: only patches of these; None for all.
        whole_unseen: with `seen_domains`: take the patches of other domains that `split` has not from `split` alone
            but from all lists. Nothing was trained on them, and more patches make their scores steadier.
        seen_domains: what the network was trained on, or its epoch chosen by.
        stylized: with their copies in other styles, which scripts/make_stylized.py makes.

    Returns:
        For each labelled entry all of `PatchEntry` but `labelled`, `image` as a full path, and nothing else; with
        `stylized` the full path of the copy, too.

    Raises:
        DataError: the file is missing or not JSON, the split is missing or empty, an entry lacks a field or has
            another label than 0 and 1, a listed file does not exist or is listed twice, a domain is not known (the
            known ones are listed), in training a domain has no patch or patches of one class alone, in a validation
            (a split of that name, or such as "ood_validation") all patches are of one class, `whole_unseen` without
            `seen_domains`, `stylized` where an entry has no copy.
    """
    return PatchDatalist(path).choose(split, domains, whole_unseen, seen_domains, stylized)


def load_regions(
    path: str | os.PathLike,
    split: str,
    domains: Sequence[str] | None = None,
    whole_unseen: bool = False,
    seen_domains: Sequence[str] | None = None,
    optional: bool = False,
    mpp: float | None = None,
    stylized: bool = False,
) -> list[RegionEntry]:
    """The regions of one split of a datalist, checked, in the order of the list.

    Args:
        path: the datalist, a JSON file; the files that it names are relative to its folder.
        split: `"training"`, `"validation"`, `"test"` or another list of the file; `"unlabelled"` for the images that
            nobody annotated.
        domains, whole_unseen, seen_domains: see `load_patches`.
        optional: a list that is missing or empty gives no regions, and no error.
        mpp: µm a pixel that the network is for; pixels are taken as they are, and regions that state a size that
            differs by more than 15 % are refused. None: any will do.
        stylized: with their copies in other styles, see `load_patches`.

    Returns:
        For each entry all of `RegionEntry`: `image` as a full path, `case`, its path in the datalist, `mpp` of the
        entry or else of the datalist; `box` and `label`, both empty for an image without a figure, where it is
        labelled; `stylized`, the full path of the copy, where it is asked for.

    Raises:
        DataError: as `load_patches`, where regions lack a mitotic figure; also when the file states no or another
            `box_mode` than "xyxy"; a box is no box or lies outside of an image of known size; labels are not as many
            as boxes or not classes; a labelled split has an entry that is not labelled, or "unlabelled" one that is;
            an unlabelled image is in another list; a region states pixels of another size than `mpp`; a copy
            has another size than its image.
    """
    datalist = RegionDatalist(path)
    datalist.labels()
    if optional and not datalist.content.get(split):
        datalist.resolve_domains(domains)
        return []
    regions = datalist.choose(split, domains, whole_unseen, seen_domains, stylized)
    for region in regions:
        region["labelled"] = "box" in region
        region["mpp"] = stated = region.get("mpp") or datalist.content.get("mpp")
        if stated and mpp and max(stated / mpp, mpp / stated) > 1 + MPP_TOLERANCE:
            raise DataError(
                f"{path}: {region['case']} has {stated:g} µm a pixel, and the network is for {mpp:g}: figures would "
                "have another size than in inference. Set --mpp in training to what all regions have, or resample "
                "those that differ, with their boxes."
            )
    return regions


def patch_labels(path: str | os.PathLike) -> dict[str, int]:
    """The names of the classes 0 and 1 in a datalist of patches, name → id.

    Raises:
        DataError: when the datalist is missing, not JSON, or does not name these two.
    """
    return PatchDatalist(path).labels()


def patch_mpp(path: str | os.PathLike, default: float = 0.25) -> float:
    """µm a pixel of the patches of a datalist, where it says it, else `default`.

    Raises:
        DataError: when the datalist is missing, not JSON, or says something that is no size of a pixel.
    """
    mpp = PatchDatalist(path).content.get("mpp")
    check_value(f"{path}: 'mpp'", mpp, OrNone(MPP, f"{default:g} µm"))
    return default if mpp is None else float(mpp)


def region_labels(path: str | os.PathLike) -> dict[str, int]:
    """The same, of a datalist of regions."""
    return RegionDatalist(path).labels()


def _count_names(names: Iterable[str]) -> str:
    """Each name with how often it occurs, for messages."""
    return ", ".join(f"{name} ({count})" for name, count in sorted(Counter(names).items())) or "none"


def _holds_images(entries: object) -> bool:
    return isinstance(entries, list) and bool(entries) and all(isinstance(e, dict) and "image" in e for e in entries)
