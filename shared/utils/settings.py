"""Every setting of the bundles that people set: what it may be and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .device import visible_gpus
from .values import MPP, Choice, Flag, Kind, Number, OrNone, Several, Table, Text, Whole


@dataclass(frozen=True)
class Device:
    """A device that this machine has, by the name that torch gives it, or as torch's object."""

    @property
    def expected(self) -> str:
        return f"cpu, or cuda or cuda:N for a GPU that this machine has{visible_gpus()}"

    def accepts(self, value: Any) -> bool:
        try:
            device = torch.device(value)
        except (RuntimeError, TypeError):
            return False
        return device.type != "cuda" or (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count())


@dataclass(frozen=True)
class Ids:
    """An id above 0, or a list of such."""

    expected: str = "an id above 0, or a list of such"

    def accepts(self, value: Any) -> bool:
        return Whole(1).accepts(value) or Several(Whole(1), distinct=True).accepts(value)


@dataclass(frozen=True)
class Paths:
    """A path, or a list of paths; "" stands for none given."""

    expected: str = "a path, or a list of paths"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) or Several(PATH).accepts(value)


@dataclass(frozen=True)
class Part:
    """What is looked for in names: text, or a number, which a command line makes of some; "" stands for none given."""

    expected: str = "a UID or number, or a part of the UID or description"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool))


@dataclass(frozen=True)
class AxisCodes:
    """Where the three axes of a volume point to."""

    expected: str = "three letters for where its axes point to, as RAS (right, front, head) or LPS"

    def accepts(self, value: Any) -> bool:
        sides = (set("LR"), set("PA"), set("IS"))
        return isinstance(value, str) and len(value) == 3 and all(len(side & set(value)) == 1 for side in sides)


@dataclass(frozen=True)
class Reference:
    """A path, or what a record holds of it."""

    expected: str = "a path"

    def accepts(self, value: Any) -> bool:
        return PATH.accepts(value) or isinstance(value, dict)


@dataclass(frozen=True)
class Codes:
    """For each class a table, which is looked at where it is read."""

    expected: str = "names, each with a table as {'code': '78961009', 'meaning': 'Spleen'}"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, Mapping) and all(isinstance(entry, Mapping) for entry in value.values())


TILES = ("mitotic", "non_mitotic", "empty", "unlabelled")
PATH, FLAG, SHARE = Text("a path"), Flag(), Number(0, 1)
PIXELS, RGB, NAME = Whole(1), Several(Number(), 3), Text("a name")
DOMAINS = OrNone(Several(Text("the name of a domain"), distinct=True), "all")

NEEDS = {  # settings that have no effect without another one
    ("classifier_weight", "classifier_floor", "cascade_path", "classifier_stain_weights"): ("classifier",),
    ("classifier_flips", "classifier_batch_size"): ("classifier", "subtype_classifier"),
    ("subtype_threshold", "subtype_stain_weights"): ("subtype_classifier",),
    ("replace",): ("store",),
}

SETTINGS: dict[str, tuple[Kind, str]] = {
    # where things are
    "bundle_root": (PATH, "the bundle's folder"),
    "dataset_dir": (Paths(), "folder of the data"),
    "datalist": (PATH, "JSON file that lists the data"),
    "input": (Paths(), "what to work on: file, folder, pattern, datalist, or a list of these"),
    "series": (Part(), "which DICOM series of the input; none given: each that is a CT volume"),
    "output_dir": (PATH, "folder for results"),
    "roi": (
        OrNone(PATH, "all of it"),
        "GeoJSON of what is to be searched, or a folder of such by images' names",
    ),
    "ckpt_dir": (PATH, "folder for checkpoints"),
    "ckpt_path": (PATH, "weights to evaluate or to use"),
    "pretrained": (OrNone(PATH, "random ones"), "file of weights to start from"),
    "threshold_path": (PATH, "file of the threshold that training chose"),
    "cache_dir": (PATH, "folder for preprocessed cases"),
    # a classifier that judges what the detector finds
    "classifier": (
        Text("the model.pt of a trained mitosis_fusestyle_cls, or a folder with models/model.pt", empty=True),
        "what judges the detections; none given: nothing",
    ),
    "classifier_flips": (FLAG, "it sees each crop mirrored, too, which takes four times as long"),
    "classifier_batch_size": (Whole(1), "crops at a time"),
    "classifier_weight": (OrNone(Number(0, 1), "as chosen"), "of its probability beside the detector's"),
    "classifier_floor": (SHARE, "the detector's probability from which on it is asked"),
    "classifier_stain_weights": (PATH, "weights of the StainNet that it was trained with"),
    "subtype_classifier": (
        Text("the model.pt of a trained mitosis_fusestyle_cls, or a folder with models/model.pt", empty=True),
        "what tells kinds of mitotic figures apart; none given: nothing",
    ),
    "subtype_threshold": (SHARE, "its probability from which a figure is of its class 1"),
    "subtype_stain_weights": (PATH, "weights of the StainNet that it was trained with"),
    "cascade_path": (PATH, "file of the weight and the threshold that cascade.json chose"),
    # DICOM objects, with variants/dicom.json
    "dicom": (
        Several(Choice(("seg", "sr", "rtstruct", "ann")), distinct=True, empty=True),
        "objects that are written beside the results",
    ),
    "codes": (OrNone(Codes(), "those of metadata.json"), "DICOM code of each class"),
    "segmentation_type": (Choice(("BINARY", "LABELMAP")), "how the SEG holds its voxels"),
    "store": (
        Text("the address of a DICOMweb server", empty=True),
        "where they are stored; none given: nowhere",
    ),
    "replace": (FLAG, "delete there what an earlier run has stored for the same images"),
    # how a run goes
    "run_name": (OrNone(NAME, "none"), "what MLflow calls the run; MonaiAlgo sets it"),
    "device": (Device(), "where the network runs"),
    "stitching_device": (Device(), "where windows are put together"),
    "amp": (FLAG, "mixed precision, on a GPU"),
    "amp_dtype": (Choice(("float16", "bfloat16")), "its type; bfloat16 does not overflow, and needs an A100 or later"),
    "cudnn_benchmark": (FLAG, "try a GPU's convolutions for each new shape and take the fastest"),
    "deterministic": (FLAG, "the same numbers each time, also on a GPU, where it is slower"),
    "channels_last": (FLAG, "memory layout of the network that may be faster on a GPU"),
    "compile": (FLAG, "let torch compile the network, which takes minutes at the start"),
    "seed": (Whole(0, 2**32 - 1), "of all random draws"),
    "num_workers": (Whole(0), "processes that load data; 0: the run itself does"),
    "worker_timeout": (Whole(0), "seconds until such a process that gives nothing is given up; 0: never"),
    "rank_timeout": (Whole(0), "seconds until a rank that stands still is given up; 0: never"),
    "cache": (Choice(("disk", "memory", "none")), "where preprocessed cases or patches are kept"),
    "cache_workers": (Whole(1), "how many fill the cache at a time"),
    "keep_going": (FLAG, "go on with the others where a case fails"),
    "overlap_cases": (FLAG, "read the next case and save the last one while the network has its own"),
    "skip_existing": (FLAG, "leave out what the same weights and settings have done already"),
    "resume": (Flag(("best",)), "go on after the last epoch that was saved, or after the best one"),
    "overwrite": (FLAG, "replace the checkpoints and results of an earlier run"),
    "allow_leakage": (FLAG, "go on where what training sees is scored, too"),
    "save_seconds": (Number(0), "seconds from one checkpoint to the next, at the end of an epoch; 0: after each"),
    # what is learnt
    "labels": (Table(Whole(), "names and ids, as {'spleen': 1, 'liver': 2}"), "name and id, 1 to N, of each class"),
    "label_ids": (OrNone(Table(Ids(), "names and ids"), "those of labels"), "name and id or ids in the label files"),
    "fold": (OrNone(Whole(0), "no cross-validation"), "which part of cross-validation validates"),
    "folds": (OrNone(Whole(2), "no cross-validation"), "parts of cross-validation"),
    "train_domains": (DOMAINS, "domains to train on"),
    "val_split": (NAME, "list of the datalist that chooses the epoch"),
    "val_domains": (DOMAINS, "domains of that list that do"),
    "balance_domains": (FLAG, "as many patches of each domain in every batch"),
    "spacing": (Several(Number(above=0), 3), "size of a voxel for the network, mm"),
    "assume_orientation": (OrNone(AxisCodes(), "refuse it"), "of a CT whose file says nothing of sides"),
    "check_intensity": (Choice(("error", "warn", "off")), "what to do where voxels seem to be no HU"),
    "nan_as": (OrNone(Number(), "refuse them"), "HU in place of voxels that are NaN or infinite"),
    "intensity_range": (Several(Number(), 2), "HU that become 0 and 1"),
    "roi_size": (Several(Whole(16, step=8), 3), "crops and windows, voxels"),
    "crop_size": (PIXELS, "what is cut from the middle of an image, pixels"),
    "patch_size": (PIXELS, "what that is resampled to, pixels"),
    "tile_size": (PIXELS, "side of a tile, pixels"),
    "val_tile_size": (PIXELS, "side of a tile in validation and evaluation, pixels"),
    "tile_overlap": (Whole(0), "overlap of tiles, pixels"),
    "tiles_per_epoch": (OrNone(Whole(1), "by the number of figures"), "tiles in an epoch"),
    "empty_tiles_per_region": (Whole(0), "tiles without figures that a region adds to an epoch"),
    "tile_shares": (
        Table(SHARE, "a share from 0 to 1 of " + ", ".join(TILES), TILES),
        "what tiles are drawn around",
    ),
    "mpp": (OrNone(MPP, "as the file says"), "size of a pixel, µm"),
    "override_mpp": (FLAG, "mpp goes before what the file says"),
    "network_mpp": (MPP, "size of a pixel for the network, µm"),
    "image_mean": (RGB, "taken off red, green and blue in [0, 1]"),
    "image_std": (Several(Number(above=0), 3), "by which they are then divided"),
    "stain_norm": (OrNone(Choice(("macenko", "reinhard", "stainnet")), "not at all"), "how stains are normalised"),
    "stain_reference": (OrNone(Reference(), "a published one"), "image whose stains they become"),
    "stain_weights": (OrNone(PATH, "no StainNet"), "weights of StainNet"),
    # the schedule
    "max_epochs": (Whole(1), "epochs"),
    "val_interval": (Whole(1), "epochs from one validation to the next"),
    "warmup_epochs": (Whole(0), "epochs in which the learning rate rises"),
    "learning_rate": (Number(above=0, most=10), "the greatest"),
    "lr_factor": (Number(above=0, most=1), "of the learning rate where progress ends"),
    "lr_patience": (Whole(0), "validations without progress before that"),
    "warm_up": (Number(0), "of a method: below 1 a share of all steps, else a number of steps"),
    "cases_per_epoch": (OrNone(Whole(1), "each case once"), "cases in an epoch, drawn from those there are"),
    "batch_size": (Whole(1), "cases, patches or tiles in a batch"),
    "num_samples": (Whole(1), "crops of a case in a batch"),
    "clip_norm": (OrNone(Number(above=0), "no limit"), "greatest norm of the gradients"),
    "flip_prob": (SHARE, "probability of a flip along an axis"),
    "rotate_prob": (SHARE, "probability of a rotation"),
    # the network
    "network_overlay": (Text("a path", empty=True), "the overlay that sets the network; set by overlays"),
    "stylized_p": (SHARE, "probability that training takes an image's copy in another style"),
    "freeze": (OrNone(Text("a regular expression"), "nothing"), "names of parameters that stay as they are"),
    "sw_batch_size": (Whole(1), "windows at a time"),
    "sw_overlap": (Number(0, 0.99), "share of a window that it has in common with the next"),
    "fusestyle_places": (
        Several(Whole(1, 4), distinct=True, empty=True),
        "stages or blocks behind which FuseStyle goes",
    ),
    "fusestyle_p": (SHARE, "probability that a batch is mixed"),
    "fusestyle_alpha": (Number(above=0), "of the Beta distribution of weights"),
    "fusestyle_reference": (Choice(("dot", "random", "euclidean", "kl", "style")), "how the partner is chosen"),
    "fusestyle_partners": (Choice(("any", "same_label", "other_domain")), "which samples may be partners"),
    "fusestyle_extrapolation": (
        OrNone(Number(above=0), "between its own and its partner's"),
        "how far a sample's statistics go towards its partner's; above 1 beyond",
    ),
    "norm": (Choice(("frozen", "batch", "group")), "norm of the backbone"),
    "anchor_levels": (Several(Whole(2, 7), distinct=True), "of the pyramid; level n has the stride 2^n"),
    # re-weighting
    "reweight_on": (Choice(("validation", "training")), "whose scores drive the rule"),
    "reweighting_metric": (NAME, "those scores among the metrics; set by overlays"),
    "reweighting_trigger": (Choice(("decline", "stagnation")), "what fires the rule"),
    "reweighting_window": (Whole(1), "evaluations that it looks back, δ"),
    "reweighting_tolerance": (Number(0), "least change of the Dice, ε"),
    "reweighting_cumulative": (FLAG, "each firing multiplies the weights that classes have by their boosts"),
    # evaluation and results
    "structures": (OrNone(Several(NAME, distinct=True), "all"), "classes that are written"),
    "per_structure": (FLAG, "a file for each class that was found, too"),
    "evaluate_split": (NAME, "list of the datalist to score"),
    "test_domains": (DOMAINS, "domains to score"),
    "whole_unseen": (FLAG, "all lists of a domain that was not trained on"),
    "adapt_batch_norm": (FLAG, "batch norm takes its statistics from the images at hand"),
    "positive_rate": (
        OrNone(Number(0.001, 0.999), "not stated"),
        "share of positives among the images of each scanner",
    ),
    "tolerance": (Number(0), "of the surface distance, mm"),
    "bootstrap": (Whole(1), "resamplings for the intervals"),
    "threshold": (SHARE, "score from which it counts"),
    "score_threshold": (SHARE, "score below which detections are dropped"),
    "top_k": (Whole(1), "detections of a tile, at most"),
    "suppress_radius": (Number(0), "detections nearer to a better one are dropped, pixels"),
    "match_radius": (Number(above=0), "a detection this near to a figure finds it, pixels"),
    "matching": (Choice(("one_to_one", "many_to_one")), "how detections and figures go together"),
    "min_tissue": (SHARE, "share of tissue from which a tile is searched"),
    "on_glass": (Choice(("drop", "keep")), "what becomes of detections that lie off the tissue"),
    "count_area_mm2": (Number(above=0), "area of the mitotic count, mm²"),
    "count_aspect": (Number(above=0), "width by height of that area"),
    "count_min_tissue": (SHARE, "share of tissue that it should hold"),
}
