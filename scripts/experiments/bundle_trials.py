"""Wrong options of `python -m monai.bundle run`, and what each has to be answered: a trial a line."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from shared.utils import write_json

from .faults import CONFIGS, LAMBDA, PATCHES, REGIONS, UNETR, WHOLE, YES_OR_NO, Trial, options

# What the process of a command does before the command.
DYING_WORKERS = "import os\nos.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), 9))"
STOPPED_WORKERS = DYING_WORKERS.replace(", 9", ", 19")
LITTLE_MEMORY = """import resource, ignite, matplotlib.pyplot, monai.bundle, nibabel, torch
import shared.engines, shared.handlers
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (150 << 20),) * 2)"""
NOBODY = """import os
if os.getuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
os.environ.update(HOME='$FOLDER', MPLCONFIGDIR='/tmp')"""

MAX_EPOCH = r"^max_epoch: no such setting of configs/train\.json.*; did you mean max_epochs\?"
ORDER = r"^configs/(train|inference)\.json replaces what configs/variants/demo\.json, before it, says.*--config_file"
OF_ANOTHER = r"^configs/multi_gpu_evaluate\.json reads .*, which .* do not know; .*configs/evaluate\.json"
OVERLAY = r"variants/demo\.json.*--config_file|--config_file.*variants/demo\.json"
LABELS = r"^labels.* [Ee]xpected names and (their )?ids"
RECORDED = r".*, these weights were trained with"
PROBABILITY = "expected a number from 0 to 1"
LENGTH = "expected a number above 0"
MICRONS = "expected a number from 0.05 to 4"

BUNDLES = (UNETR, LAMBDA, PATCHES, REGIONS)
TRAIN, INFER, EVALUATE = f"train {UNETR}", f"infer {UNETR}", f"evaluate {UNETR}"
LIVER = "--labels \"{'liver':1}\""


def files(*names: str) -> str:
    return f'--config_file "{[f"configs/{name}.json" for name in names]}"'


def unreadable(folder: Path, data: Path, name: str) -> None:
    """A copy of the CTs in which a user has no right to read a file."""
    shutil.copytree(data / "ct", folder / "ct")
    folder.chmod(0o777)
    (folder / "ct" / name).chmod(0)


def folder_for_a_file(folder: Path, data: Path) -> None:
    (folder / "dataset.json").mkdir()


def a_file(folder: Path, data: Path, content: Any = None) -> None:
    write_json(folder / "file.json", content)


def weights_without_record(folder: Path, data: Path) -> None:
    shutil.copy(data / "weights" / UNETR / "model.pt", folder / "bare.pt")


def broken_weights(folder: Path, data: Path) -> None:
    (folder / "broken.pt").write_bytes(b"not what torch writes")


train = partial(options, "training", TRAIN)
place = partial(Trial, "files and processes")
config = partial(Trial, "configs")
weights = partial(Trial, "weights")
label = partial(Trial, "labels")
by_monai = partial(Trial, "refused by MONAI itself", TRAIN, by_monai=True)

TRAINING = [
    *train(
        {
            "--max_epoch 3": MAX_EPOCH,
            "--max_epoch=3": MAX_EPOCH,
            "--max-epoch 3": MAX_EPOCH,
            "--resumee true": r"^resumee: no such setting of .*did you mean resume\?",
            "--max_epochs abc": rf"^max_epochs is 'abc', {WHOLE} of 1 or above",
            "--max_epochs 0": rf"^max_epochs is 0, {WHOLE} of 1 or above",
            "--max_epochs -3": rf"^max_epochs is -3, {WHOLE} of 1 or above",
            "--max_epochs 1.5": rf"^max_epochs is 1\.5, {WHOLE} of 1 or above",
            "--reweighting None": r"^reweighting is None, which MONAI takes for not given, expected .*'\$None'$",
            "--reweighting#loss null": r"^reweighting#loss is the text 'null', expected .*'\$None'$",
            "--resume maybe": r"^resume is 'maybe', expected true, false or best",
            "--resume true": r"last\.pt",
            "--amp yes": rf"^amp is 'yes', {YES_OR_NO}",
            "--amp true --device cpu": r"^amp is true, and the device is cpu: .*Leave --amp out",
            "--amp_dtype half": r"^amp_dtype is 'half', expected float16 or bfloat16",
            "--cudnn_benchmark 2": rf"^cudnn_benchmark is 2, {YES_OR_NO}",
            "--deterministic maybe": rf"^deterministic is 'maybe', {YES_OR_NO}",
            "--channels_last 2": rf"^channels_last is 2, {YES_OR_NO}",
            "--compile maybe": rf"^compile is 'maybe', {YES_OR_NO}",
            "--learning_rate nan": r"^learning_rate is '?nan'?, expected a number",
            "--learning_rate -1": r"^learning_rate is -1, expected a number",
            "--learning_rate 1e30": r"^learning_rate is 1e\+30, expected a number",
            "--learning_rate fast": r"^learning_rate is 'fast', expected a number",
            "--batch_size 0": rf"^batch_size is 0, {WHOLE} of 1 or above",
            "--batch_size -2": rf"^batch_size is -2, {WHOLE} of 1 or above",
            "--num_workers -1": rf"^num_workers is -1, {WHOLE} of 0 or above",
            "--worker_timeout -1": rf"^worker_timeout is -1, {WHOLE} of 0 or above",
            "--seed abc": rf"^seed is 'abc', {WHOLE}",
            "--seed -1": rf"^seed is -1, {WHOLE} from 0 to",
            "--val_interval 0": rf"^val_interval is 0, {WHOLE} of 1 or above",
            "--cases_per_epoch 0": rf"^cases_per_epoch is 0, {WHOLE} of 1 or above",
            "--save_seconds -1": r"^save_seconds is -1, expected a number of 0 or above",
            "--save_seconds abc": r"^save_seconds is 'abc', expected a number of 0 or above",
            "--cache foo": r"^cache is 'foo', expected .*memory",
            "--spacing [1,2]": rf"^spacing is \[1, 2\], expected a list of 3, each {LENGTH[9:]}",
            "--spacing [-1,1,1]": rf"^spacing is \[-1, 1, 1\], expected a list of 3, each {LENGTH[9:]}",
            "--roi_size [30,30,30]": r"^roi_size is \[30, 30, 30\], expected",
            "--fold 0": r"`fold` is 0 and `folds` is None",
            "--fold 9 --folds 2": r"^fold 9 of 2 cannot be made .*Expected `folds` from 2 to 3",
            "--fold x --folds 2": rf"^fold is 'x', {WHOLE}",
            "--device cuda:99": r"^device is 'cuda:99', expected .*cpu",
            "--pretrained /nowhere/model.pt": r"/nowhere/model\.pt",
            "--dataset_dir /nowhere": r"/nowhere/dataset\.json",
        }
    ),
    *train({"--train#trainer#max_epoch 3": r"unexpected keyword argument 'max_epoch'"}, late=True),
    *options(
        "training",
        f"train {LAMBDA}",
        {
            "--reweighting_windoww 3": r"^reweighting_windoww: no such setting of .*did you mean reweighting_window\?",
            "--reweighting_cumulative maybe": rf"^reweighting_cumulative is 'maybe', {YES_OR_NO}",
            "--reweighting_trigger never": r"^reweighting_trigger is 'never', expected .*decline",
            "--num_samples 0": rf"^num_samples is 0, {WHOLE} of 1 or above",
            "--sw_overlap 1.5": r"^sw_overlap is 1\.5, expected a number",
            "--flip_prob 2": rf"^flip_prob is 2, {PROBABILITY}",
        },
    ),
    *options(
        "training",
        f"train {PATCHES}",
        {
            "--crop_siz 64": r"^crop_siz: no such setting of .*did you mean crop_size\?",
            "--crop_size -5": rf"^crop_size is -5, {WHOLE}",
            "--crop_size 5000": r"smaller than the patch of 5000.*--crop_size",
            "--train_domains \"['ZZZ']\"": r"^train_domains .*ZZZ|ZZZ.*(XR|S360)",
            "--train_domains XR": r"^train_domains is 'XR', expected a list",
            "--train_domains []": r"^train_domains is \[\], expected a list",
            "--train_domains 5": r"^train_domains is 5, expected a list",
            "--val_split 5": r"^val_split is 5, expected a name",
            "--val_split valdation": r"the list 'valdation' is missing\. It has .*'validation'",
            "--val_domains XR": r"^val_domains is 'XR', expected a list",
            "--val_domains \"['ZZZ']\"": r"there is no domain ZZZ\. Known: .*XR",
            "--balance_domains perhaps": rf"^balance_domains is 'perhaps', {YES_OR_NO}",
            "--fusestyle_p 2": rf"^fusestyle_p is 2, {PROBABILITY}",
            "--fusestyle_partners other": r"^fusestyle_partners is 'other', expected any, same_label or other_domain",
            "--fusestyle_extrapolation -1": r"^fusestyle_extrapolation is -1, expected a number above 0, or None",
            "--stain_norm vahadane": r"^stain_norm is 'vahadane', expected macenko, reinhard or stainnet",
            "--stain_norm macenko --stain_reference /nowhere.png": r"/nowhere\.png: there is no such file",
            "--stain_norm stainnet --stain_weights /nowhere.pt": r"/nowhere\.pt: there are no weights of StainNet",
            "--stain_reference 5": r"^stain_reference is 5, expected a path",
            "--image_std [0,0,0]": rf"^image_std is \[0, 0, 0\], expected .*{LENGTH[9:]}",
        },
    ),
    *options(
        "training",
        f"train {REGIONS}",
        {
            "--tile_sise 128": r"^tile_sise: no such setting of .*did you mean (val_)?tile_size\?",
            "--tile_size 0": rf"^tile_size is 0, {WHOLE}",
            "--tiles_per_epoch 0": rf"^tiles_per_epoch is 0, {WHOLE} of 1 or above",
            "--tile_shares \"{'mitotic':5,'x':1}\"": r"^tile_shares is .*expected",
            "--mpp 0,25": rf"^mpp is .*, {MICRONS}",
            "--top_k 0": rf"^top_k is 0, {WHOLE} of 1 or above",
            "--fusestyle_partners same_label": r"partners are same_label, and an image of a detector has no label",
        },
    ),
]
CONFIG_FILES = [
    *(config(f"train {bundle}", files("variants/demo", "train"), ORDER, timeout=60) for bundle in BUNDLES),
    *(config(f"infer {bundle}", files("variants/demo", "inference"), ORDER, timeout=60) for bundle in BUNDLES),
    *(config(f"train {bundle}", files("train", "multi_gpu_evaluate"), OF_ANOTHER, timeout=60) for bundle in BUNDLES),
    config(
        INFER, files("inference", "variants/tcf"), r"^configs/variants/tcf\.json reads class_names, which", timeout=60
    ),
    config(TRAIN, files(*CONFIGS["torchrun"]), r"torchrun"),
    *(config(f"packed train {bundle}", "--max_epoch 3", MAX_EPOCH) for bundle in (UNETR, PATCHES)),
    *(
        config(f"help {bundle}", "--help", r"--max_epochs \d+ epochs \(a whole number of 1 or above\)", refused=False)
        for bundle in BUNDLES
    ),
    config(
        f"help {PATCHES}",
        "--config_file configs/inference.json --help",
        r"score from which it counts \(a number from 0 to 1\)",
        refused=False,
    ),
]
BY_MONAI = [
    by_monai(files("train", "variants/demoo"), r"demoo\.json"),
    by_monai("--config_file configs/variants/demo.json", r"\brun\b"),
    by_monai(files("evaluate", "train"), r"progress|validate"),
    by_monai("--trian#trainer#max_epochs 3", r"trian"),
    by_monai("--train#trainr#max_epochs 3", r"trainr"),
    by_monai("--trainer::max_epochs 3", r"trainer"),
]
EVALUATION = [
    *options(
        "evaluation",
        EVALUATE,
        {
            "--evaluate_splitt validation": r"^evaluate_splitt: no such setting of .*did you mean evaluate_split\?",
            "--evaluate_split tset": r"^evaluate_split is 'tset', expected|tset.*test",
            "--tolerance -1": r"^tolerance is -1, expected a number",
            "--bootstrap -1": rf"^bootstrap is -1, {WHOLE}",
            "--bootstrap many": rf"^bootstrap is 'many', {WHOLE}",
            "--ckpt_path /nowhere/model.pt": r"/nowhere/model\.pt",
        },
    ),
    *options(
        "evaluation",
        f"evaluate {PATCHES}",
        {
            "--treshold 0.9": r"^treshold: no such setting of .*did you mean threshold\?",
            "--threshold 7": rf"^threshold is 7, {PROBABILITY}",
            "--test_domains \"['ZZZ']\"": r"ZZZ.*(XR|S360)",
            "--adapt_batch_norm perhaps": rf"^adapt_batch_norm is 'perhaps', {YES_OR_NO}",
            "--positive_rate 30": r"^positive_rate is 30, expected a number from 0\.001 to 0\.999, or None",
        },
    ),
    *options(
        "evaluation",
        f"evaluate {REGIONS}",
        {
            "--matching foo": r"^matching is 'foo', expected .*one_to_one",
            "--match_radius -3": r"^match_radius is -3, expected a",
            "--classifier /nowhere/c.pt": r"/nowhere/c\.pt: there is no such classifier",
        },
    ),
]
INFERENCE = [
    *options(
        "inference",
        f"infer {PATCHES}",
        {
            "--treshold 0.99": r"^treshold: no such setting of .*did you mean threshold\?",
            "--threshold 7": rf"^threshold is 7, {PROBABILITY}",
            "--threshold 40": rf"^threshold is 40, {PROBABILITY}",
            "--threshold nan": rf"^threshold is '?nan'?, {PROBABILITY}",
            "--batch_size 0": rf"^batch_size is 0, {WHOLE} of 1 or above",
            "--input /nowhere": r"/nowhere",
            "--device cuda:99": r"^device is 'cuda:99', expected .*cpu",
        },
    ),
    *options(
        "inference",
        f"infer {REGIONS}",
        {
            "--mpp nan": rf"^mpp is '?nan'?, {MICRONS}",
            "--mpp 40": rf"^mpp is 40, {MICRONS}",
            "--mpp abc": rf"^mpp is 'abc', {MICRONS}",
            "--mpp -1": rf"^mpp is -1, {MICRONS}",
            "--mpp 0,25": rf"^mpp is .*, {MICRONS}",
            "--count_area_mm2 -2": rf"^count_area_mm2 is -2, {LENGTH}",
            "--top_k 0": rf"^top_k is 0, {WHOLE} of 1 or above",
            "--tile_overlap 5000": r"^tile_overlap is 5000, expected ",
            "--tile_size 0": rf"^tile_size is 0, {WHOLE}",
            "--roi nowhere.geojson": r"^nowhere\.geojson: .*",
            "--on_glass maybe": r"^on_glass is 'maybe', expected drop or keep",
            "--override_mp true": r"^override_mp: no such setting of .*did you mean override_mpp\?",
            "--classifier /nowhere/c.pt": r"/nowhere/c\.pt: there is no such classifier",
            "--classifier $DATA/weights/mitosis_retinanet_fusestyle/model.pt": r"and no classifier\. Give",
            "--classifier $DATA/weights/mitosis_fusestyle_cls/model.pt": r"cascade\.json: there is no such file",
            "--classifier_weight 2": r"^classifier_weight is 2, expected a number from 0 to 1",
            "--classifier_flips maybe": rf"^classifier_flips is 'maybe', {YES_OR_NO}",
            "--classifier_batch_size 0": rf"^classifier_batch_size is 0, {WHOLE} of 1 or above",
        },
    ),
    *options(
        "inference",
        INFER,
        {
            "--inputt x": r"^inputt: no such setting of .*did you mean input\?",
            "--keep_going perhaps": rf"^keep_going is 'perhaps', {YES_OR_NO}",
            "--sw_overlap 2": r"^sw_overlap is 2, expected a number",
            "--stitching_device gpu": r"^stitching_device is 'gpu', expected .*cpu",
            "--series 9.9.9": r"^No DICOM series is '9\.9\.9'",
            "--assume_orientation RAX": r"^assume_orientation is 'RAX', expected three letters",
            "--check_intensity maybe": r"^check_intensity is 'maybe', expected error, warn or off",
            "--nan_as air": r"^nan_as is 'air', expected a number",
            "--structures liver": r"^structures is 'liver', expected a list",
            "--structures \"['lever']\"": r"^structures has 'lever', expected names of the network's classes",
            "--per_structure maybe": rf"^per_structure is 'maybe', {YES_OR_NO}",
            "--dicom seg": r"^dicom is 'seg', expected a list",
            "--dicom \"['seg']\"": r"^--dicom needs the overlay that makes DICOM objects: .*variants/dicom\.json",
            "--store http://127.0.0.1:1": r"^--store needs the overlay that makes DICOM objects",
            "--codes liver": r"^codes is 'liver', expected names, each with a table",
            "--segmentation_type binary": r"^segmentation_type is 'binary', expected BINARY or LABELMAP",
            "--replace maybe": rf"^replace is 'maybe', {YES_OR_NO}",
        },
    ),
]
LABEL_NAMES = [
    *options(
        "labels",
        TRAIN,
        {
            "--labels \"{'liver': 1\"": LABELS,
            "--labels \"['liver','spleen']\"": LABELS,
            "--labels \"{'liver':1,'spleen':5}\"": LABELS,
            "--labels \"{'liver':1,'spleen':1}\"": LABELS,
            "--labels \"{'liver':'one'}\"": LABELS,
            "--labels \"{'liver':'1'}\"": LABELS,
            "--labels \"{'liver':-1}\"": LABELS,
            "--labels {}": LABELS,
            "--labels \"{'background':0}\"": LABELS,
            "--label_ids \"{'liver':'x'}\"": r"^label_ids .*expected",
        },
    ),
    label(
        TRAIN,
        "--dataset_dir $DATA/binary --labels \"{'background':0,'liver':1}\"",
        r"background.*left out",
        refused=False,
    ),
    label(EVALUATE, LIVER, rf"labels is {{'liver': 1}}{RECORDED}"),
    label(INFER, LIVER, rf"labels is {{'liver': 1}}{RECORDED}"),
    label(INFER, "--labels \"['liver']\"", LABELS),
]
WEIGHTS = [
    weights(INFER, f"--ckpt_path $DATA/weights/{LAMBDA}/model.pt", LAMBDA),
    weights(f"infer {PATCHES}", f"--ckpt_path $DATA/weights/{UNETR}/model.pt", UNETR),
    weights(f"infer {REGIONS}", f"--ckpt_path $DATA/weights/{PATCHES}/model.pt", PATCHES),
    *(weights(f"infer {bundle}", "--config_file configs/inference.json", OVERLAY) for bundle in BUNDLES),
    weights(EVALUATE, files("train", "evaluate"), OVERLAY),
    weights(INFER, "--spacing [5,5,5]", rf"spacing is \[5, 5, 5\]{RECORDED}"),
    weights(
        INFER,
        "--ckpt_path $FOLDER/bare.pt",
        r"bare\.pt: no bare\.json beside it.*: as the configuration has them",
        refused=False,
        prepare=weights_without_record,
    ),
]
PLACES = [
    place(TRAIN, "--output_dir $FOLDER/file.json", r"/file\.json", prepare=a_file),
    place(TRAIN, "--ckpt_dir $FOLDER/file.json", r"/file\.json", prepare=a_file),
    place(TRAIN, "--dataset_dir $FOLDER", r"dataset\.json.*folder", prepare=folder_for_a_file),
    place(
        TRAIN,
        "--datalist $FOLDER/ct/dataset.json",
        r"dataset\.json.*(read|[Pp]ermission)",
        prepare=partial(unreadable, name="dataset.json"),
        before=NOBODY,
    ),
    place(
        TRAIN,
        "--dataset_dir $FOLDER/ct",
        r"a\.nii\.gz|1 of ",
        prepare=partial(unreadable, name="a.nii.gz"),
        before=NOBODY,
    ),
    place(INFER, "--ckpt_path $FOLDER/broken.pt", r"broken\.pt", prepare=broken_weights),
    place(TRAIN, "--pretrained $FOLDER/broken.pt", r"broken\.pt", prepare=broken_weights),
    place(TRAIN, "--args_file $FOLDER/file.json", MAX_EPOCH, prepare=partial(a_file, content={"max_epoch": 3})),
    place(TRAIN, "--num_workers 1", r"worker", before=DYING_WORKERS, late=True),
    place(f"train {PATCHES}", "--num_workers 1", r"worker", before=DYING_WORKERS, late=True),
    place(TRAIN, "--num_workers 1 --worker_timeout 2", r"--worker_timeout", before=STOPPED_WORKERS, late=True),
    place(TRAIN, "--roi_size [96,96,96] --spacing [1,1,1]", r"memory", before=LITTLE_MEMORY, late=True),
    place(f"torchrun {PATCHES}", "--max_epoch 3", MAX_EPOCH),
    place(f"torchrun {PATCHES}", "--rank_timeout -1", rf"^rank_timeout is -1, {WHOLE} of 0 or above"),
    place(f"torchrun {PATCHES}", "--max_epochs abc", rf"^max_epochs is 'abc', {WHOLE}"),
]
BUNDLE_TRIALS = [
    *(*TRAINING, *CONFIG_FILES, *EVALUATION, *INFERENCE),
    *(*LABEL_NAMES, *WEIGHTS, *PLACES, *BY_MONAI),
]
