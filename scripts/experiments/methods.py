"""The methods that the tables compare: the overlays that train each, the values that it trains with, and its source."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import getitem
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

from shared.utils import DataError, read_json_object
from shared.utils.values import Several, Text

from .runs import BUNDLES, Training, file_digest
from .stains import with_copies, with_stainnet
from .tables import markdown_grid

CLASSIFIER, DETECTOR = "mitosis_fusestyle_cls", "mitosis_retinanet_fusestyle"
PLAIN = "erm"  # what the others are compared with
FUSESTYLE = ("fusestyle_places", "fusestyle_p", "fusestyle_alpha", "fusestyle_reference")
NOISE = ("fusestyle_places", "fusestyle_p")
PAPER = "Khamankar et al., arXiv 2310.20638"
Overlays = Annotated[Sequence[str], Several(Text(), distinct=True, empty=True)]  # an option of the tables


class Method(NamedTuple):
    """A way to train.

    Attributes:
        variants: the overlays of its bundle, or paths of others.
        source: where it and its values come from.
        keys: settings of the bundle that it rests on, beside those that its overlays set.
        options: of the command line, beside its overlays.
        copies: whether it is trained on copies of the images in other styles.
        stainnet: whether each of its runs has a StainNet of its own, which is trained first.
    """

    variants: tuple[str, ...]
    source: str
    keys: tuple[str, ...] = ()
    options: Mapping[str, Any] = MappingProxyType({})
    copies: bool = False
    stainnet: bool = False


_COMMON = {
    PLAIN: Method(("no_fusestyle",), "mean over samples"),
    "fusestyle": Method((), PAPER, FUSESTYLE),
    "mixstyle": Method(("mixstyle",), "Zhou et al., arXiv 2104.02008; the paper's M1", FUSESTYLE),
}
_ADVERSARIAL = {"domain_adversarial": Method(("domain_adversarial",), "Ganin et al., arXiv 1505.07818")}
_JITTERED = {
    "jitter": Method(("no_fusestyle", "stain_jitter"), "amounts of haematoxylin and eosin varied"),
    "fusestyle_jitter": Method(("stain_jitter",), f"{PAPER}, and stain jitter", FUSESTYLE),
}
_DSU = "Li et al., ICLR 2022, arXiv 2202.03958; the floor is ours"
_STATISTICS = {
    "style": Method(("style",), "ours: most distant in style, of the same label", FUSESTYLE),
    "extrapolated": Method(("extrapolated",), "ours: most distant in style, another domain's, and beyond", FUSESTYLE),
    "dsu": Method(("dsu",), _DSU, NOISE),
    "dsu_jitter": Method(("dsu", "stain_jitter"), f"{_DSU}; and stain jitter", NOISE),
}
_STAIN = {
    "macenko": Method(("no_fusestyle", "stain_norm"), "Macenko et al., ISBI 2009; the published reference"),
    "reinhard": Method(
        ("no_fusestyle", "stain_norm"),
        "Reinhard et al., IEEE CG&A 2001; the reference of HistomicsTK",
        options={"stain_norm": "reinhard"},
    ),
    "stainnet": Method(
        ("no_fusestyle", "stainnet"),
        "Kang et al., Front. Med. 2021; for each run learned from Macenko's on its training slides",
        stainnet=True,
    ),
    "strap": Method(
        ("strap",),
        "Yamashita et al., arXiv 2102.01678; copies that the datalist has, or else of our pyramids and textures",
        copies=True,
    ),
}
METHODS: dict[str, dict[str, Method]] = {
    CLASSIFIER: {
        **_COMMON,
        "euclidean": Method(("euclidean",), f"{PAPER}, M2", FUSESTYLE),
        "kl": Method(("kl",), f"{PAPER}, M3", FUSESTYLE),
        "group_dro": Method(("group_dro",), "Sagawa et al., arXiv 1911.08731"),
        "vrex": Method(("vrex",), "Krueger et al., arXiv 2003.00688; values of DomainBed", ("warm_up",)),
        "ib_irm": Method(("ib_irm",), "Ahuja et al., arXiv 2106.06607; values of DomainBed", ("warm_up",)),
        "fish": Method(("fish",), "Shi et al., arXiv 2104.09937", ("warm_up",)),
        "lisa": Method(("lisa",), "Yao et al., arXiv 2201.00299"),
        "domain_mix": Method(("domain_mix",), "Xu et al., AAAI 2020, as Yao et al. use it"),
        **_ADVERSARIAL,
        "coral": Method(("coral",), "Sun and Saenko, arXiv 1607.01719"),
        **_JITTERED,
        "fusestyle_shallow": Method(("shallow",), f"{PAPER}, at places 1 and 2", FUSESTYLE),
        "mixstyle_shallow": Method(("mixstyle", "shallow"), "MixStyle at places 1 and 2", FUSESTYLE),
        **_STATISTICS,
        **_STAIN,
    },
    DETECTOR: {
        **_COMMON,
        **_ADVERSARIAL,
        **_JITTERED,
        **{name: method for name, method in _STATISTICS.items() if name != "style"},  # a tile has no label
        **_STAIN,
    },
}
# What a table runs unless told otherwise: those of the papers that take the images as they are.
UNLESS_TOLD = {
    bundle: tuple(name for name in methods if name not in _STAIN | _STATISTICS) for bundle, methods in METHODS.items()
}


def chosen_methods(bundle: str, names: Sequence[str], overlays: Sequence[str]) -> dict[str, Method]:
    """The methods of these names, in the order of the table, and those of `overlays`, called by their files' stems.

    Raises:
        DataError: when an overlay is not there or no JSON object, or is called like a method or variant of the bundle.
    """
    variants = BUNDLES / bundle / "configs" / "variants"
    chosen = {name: method for name, method in METHODS[bundle].items() if name in names}
    for name, method in chosen.items():
        if absent := [v for v in method.variants if not (variants / f"{v}.json").is_file()]:
            raise DataError(
                f"{variants / absent[0]}.json: is not there, and {name} needs it. Leave it out by --methods."
            )
    for path in (Path(text).expanduser().resolve() for text in overlays):
        if path.suffix != ".json" or path.stem in METHODS[bundle] or (variants / path.name).is_file():
            raise DataError(
                f"--overlays has {path}, expected a .json file that is not called like a method or variant of "
                f"{bundle}: its name is the method's in the table."
            )
        if path.stem in chosen:
            raise DataError(f"--overlays has two files called {path.name}, expected names of their own.")
        read_json_object(path, "an overlay of train.json", "Give the path of the file.")
        chosen[path.stem] = Method((str(path),), "an overlay of --overlays", ())
    return chosen


def method_datalists(
    methods: Mapping[str, Method], datalist: Path, work: Path, lists: str, jobs: int
) -> dict[str, Path]:
    """What each method reads: the datalist, or that with copies, see `with_copies`, which then are made first."""
    copied = with_copies(datalist, work, lists, jobs) if any(method.copies for method in methods.values()) else datalist
    return {name: copied if method.copies else datalist for name, method in methods.items()}


def trained_by(name: str, method: Method, training: Training) -> Training:
    """A training as the method has it: its overlays come last, and the table's options count more than its own."""
    variants, facts = (*training.variants, *method.variants), {"method": name, **training.facts}
    changed = replace(training, variants=variants, facts=facts, options={**method.options, **training.options})
    return with_stainnet(changed) if method.stainnet else changed


def seed_folder(work: Path, method: str, seed: int) -> Path:
    """Of a run, where nothing but method and seed tells runs apart."""
    return work / method / f"seed{seed}"


def plan_by_seed(
    bundle: str,
    variants: Sequence[str],
    methods: Mapping[str, Method],
    seeds: int,
    datalist: Path,
    work: Path,
    jobs: int,
    facts: Mapping[str, Any],
    options: Mapping[str, Mapping[str, Any]],
    ranks: int = 1,
) -> list[Training]:
    """All methods of a seed before the next seed, in folders as `seed_folder` says.

    Args:
        bundle: its name.
        variants: overlays that all have.
        methods: by name.
        seeds: runs of each.
        datalist: what they train on, some on copies of it, see `method_datalists`.
        work: folder of the runs.
        jobs: images that are redrawn at a time.
        facts: of all, for the record.
        options: of the command line, by method; of some none.
        ranks: processes of each training.
    """
    known, read = {**facts, "data": file_digest(datalist)}, method_datalists(methods, datalist, work, "training", jobs)
    return [
        trained_by(
            name,
            method,
            Training(
                bundle=bundle,
                variants=tuple(variants),
                folder=seed_folder(work, name, seed),
                places={"datalist": read[name]},
                options={"seed": seed, **options.get(name, {})},
                facts={"seed": seed, **known},
                ranks=ranks,
            ),
        )
        for seed in range(seeds)
        for name, method in methods.items()
    ]


def method_values(bundle: str, method: Method, options: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """What the overlays set, and the other settings that the method rests on, with options in their place."""
    configs = BUNDLES / bundle / "configs"
    files = [path if path.endswith(".json") else configs / "variants" / f"{path}.json" for path in method.variants]
    contents = [json.loads((configs / "train.json").read_bytes()), *(json.loads(Path(f).read_bytes()) for f in files)]
    keys = dict.fromkeys([*method.keys, *(key for content in contents[1:] for key in content)])
    found = {key: next(c[key] for c in reversed(contents) if key in c) for key in keys}
    for path, value in {**method.options, **options}.items():
        *parents, name = path.split("#")
        reduce(getitem, parents, found)[name] = value
    return {key: value for key, value in found.items() if not key.endswith("imports")}


def list_methods(
    bundle: str, methods: Mapping[str, Method], options: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
) -> str:
    """A table of the methods, their values and sources, and how they came to them.

    Args:
        bundle: its name.
        methods: by name.
        options: with which a method is run, beside its overlays.
    """
    rows = []
    for name, method in methods.items():
        values = method_values(bundle, method, options.get(name, {})).items()
        shown = [f"{key} {_short(v)}" for key, v in values if not str(v).startswith("$")]
        rows.append([name, "; ".join(shown).replace("|", "\\|"), method.source])
    return (
        "Values of the methods, those of their sources. None was tuned, neither on the domain left out nor elsewhere; "
        "those of overlays of your own are yours.\n\n" + markdown_grid(["method", "settings", "source"], rows) + "\n"
    )


def _short(value: Any) -> str:
    """A value as JSON; of a part its name, and of what it is given the values, not what it refers to."""
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"
    if not isinstance(value, Mapping) or "_target_" not in value:
        return json.dumps(value, ensure_ascii=False).replace('"', "")
    given = {key: v for key, v in value.items() if not key.startswith("_") and not str(v).startswith(("$", "@"))}
    return f"{value['_target_'].rpartition('.')[2]}({', '.join(f'{key} {_short(v)}' for key, v in given.items())})"
