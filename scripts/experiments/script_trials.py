"""Wrong options of the scripts, and what each has to be answered: a trial a line."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from PIL import Image

from shared.utils import write_json

from .faults import LAMBDA, UNETR, WHOLE, YES_OR_NO, Trial, options


def script(program: str, answers: Mapping[str, str], prepare: Callable | None = None) -> list[Trial]:
    return options("scripts", program, answers, prepare=prepare)


def unknown(option: str, program: str, meant: str) -> str:
    return f"^{option}: no such option of {program}; did you mean {meant}"


def a_file(folder: Path, data: Path) -> None:
    (folder / "file").touch()


def btcv(folder: Path, data: Path) -> None:
    """RawData with six cases."""
    training = folder / "in" / "RawData" / "Training"
    for part in ("img", "label"):
        (training / part).mkdir(parents=True)
    for i in range(6):
        case = data / "ct" / "abcd"[i % 4]
        shutil.copy(f"{case}.nii.gz", training / "img" / f"img{i + 1:04d}.nii.gz")
        shutil.copy(f"{case}_label.nii.gz", training / "label" / f"label{i + 1:04d}.nii.gz")


def table(folder: Path, data: Path, encoding: str = "utf-8", delimiter: str = ",") -> None:
    """A table of the patches of two scanners, one called as no ASCII can."""
    datalist = json.loads((data / "histology" / "dataset.json").read_text())
    names = {"XR": "Köln", "S360": "S360"}
    rows = [
        (entry["image"], "nm"[entry["label"]], names[entry["domain"]], entry["slide"])
        for split in ("training", "validation", "test")
        for entry in datalist[split]
        if entry["domain"] in names
    ]
    with (folder / "table.csv").open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([("file", "label", "scanner", "slide"), *rows])


def midog(folder: Path, data: Path) -> None:
    categories = [{"id": 1, "name": "mitotic figure"}, {"id": 2, "name": "hard negative"}]
    image = {"id": 1, "file_name": "001.tiff", "width": 100, "height": 100}
    figure = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 50]}
    facts = {
        "info": {"description": "MIDOG 2021"},
        "images": [image],
        "categories": categories,
        "annotations": [figure],
    }
    write_json(folder / "M.json", facts)
    (folder / "images").mkdir()
    Image.new("RGB", (100, 100)).save(folder / "images" / "001.tiff")


SYNTHETIC, HISTOLOGY = (
    "make_synthetic.py ct --output_dir $FOLDER/out",
    "make_synthetic.py histology --output_dir $FOLDER/out",
)
BTCV = "prepare_btcv.py --data_dir $FOLDER/in --output_dir $FOLDER/out"
PATCH_TABLE = (
    "prepare_patches.py --table $FOLDER/table.csv --image_dir $DATA/histology --output $FOLDER/out/d.json --positive m"
)
MIDOG = "prepare_midog.py patches --annotations $FOLDER/M.json --image_dir $FOLDER/images --output_dir $FOLDER/out"
SCRIPT_TRIALS = [
    *script("make_synthetic.py ct", {"": r"--output_dir", "--cases 3": r"--output_dir"}),
    *script("make_synthetic.py", {"": r"(ct.*histology)", "cct --output_dir $FOLDER/out": r"cct.*ct"}),
    *script(
        SYNTHETIC,
        {
            "--cases -1": rf"^--cases is -1, {WHOLE} of 3 or above",
            "--cases 2": rf"^--cases is 2, {WHOLE} of 3 or above",
            "--cases abc": rf"^--cases is 'abc', {WHOLE}",
            "--case 3": unknown("--case", "make_synthetic.py ct", "--cases"),
            "--test_cases 0": rf"^--test_cases is 0, {WHOLE} of 1 or above",
            "--cases 10 --test_cases 9": rf"^test_cases is 9, {WHOLE} from 1 to 8",
        },
    ),
    *script(
        HISTOLOGY,
        {
            "--slidez 3": unknown("--slidez", "make_synthetic.py histology", "--slides"),
            "--slides 3 --label_all perhaps": rf"^--label_all is 'perhaps', {YES_OR_NO}",
            "--seed -1": rf"^--seed is -1, {WHOLE} from 0 to",
            "--slides 3 extra": r"extra",
        },
    ),
    *script(
        "make_synthetic.py histology --output_dir $FOLDER/file/out",
        {"--slides 3": r"/file.*(folder|not a directory|Not a directory)"},
        a_file,
    ),
    *script("make_synthetic.py histology --output_dir $FOLDER", {"--slides 3": r"(holds|empty)"}, a_file),
    *script(
        BTCV,
        {
            "--excluded 0001": unknown("--excluded", "prepare_btcv.py", "--exclude"),
            "--seed abc": rf"^--seed is 'abc', {WHOLE}",
            "--workers 0": rf"^--workers is 0, {WHOLE} of 1 or above",
            "--exclude 9999": r"9999",
            "--assume_orientation RAX": r"^--assume_orientation is 'RAX', expected three letters",
            "--label_ids \"{'liver': 'x'}\"": r"^--label_ids .*expected",
            "--label_ids \"{'liver': 1, 'spleen': 1}\"": r"label_ids has the id 1 more than once, for liver and spleen",
            "--overwrite perhaps": rf"^--overwrite is 'perhaps', {YES_OR_NO}",
        },
        btcv,
    ),
    *script("prepare_btcv.py --output_dir $FOLDER/out", {"": r"--data_dir", "--data_dir /nowhere": r"/nowhere"}),
    *script(
        "prepare_totalsegmentator.py --data_dir $DATA/ct --output_dir $FOLDER/out",
        {
            "--min_organs 20": rf"^--min_organs is 20, {WHOLE} from 0 to 13",
            "--min_organ 3": unknown("--min_organ", "prepare_totalsegmentator.py", "--min_organs"),
        },
    ),
    *script(
        "prepare_nnunet.py --data_dir $DATA/ct --output_dir $FOLDER/out",
        {
            "--fold x": rf"^--fold is 'x', {WHOLE}",
            "--assume_orientation 7": r"^--assume_orientation is .*7.*, expected three letters",
            "--label_ids 5": r"^--label_ids is .*5.*, expected",
            "--fodl 1": unknown("--fodl", "prepare_nnunet.py", "--fold"),
        },
    ),
    *script(
        PATCH_TABLE,
        {
            "--unit foo": r"^--unit is 'foo', expected slide or patch",
            "--negativ n": unknown("--negativ", "prepare_patches.py", "--negative"),
            "--label_column kind": r"kind",
            "--positive zzz": r"zzz",
            "--seed 1.5": rf"^--seed is 1\.5, {WHOLE}",
            "--output $FOLDER/d.txt": r"d\.txt.*\.json",
        },
        table,
    ),
    *(
        Trial(
            "scripts",
            PATCH_TABLE,
            f"--name {encoding}",
            r"48 patches: ",
            refused=False,
            prepare=partial(table, encoding=encoding),
        )
        for encoding in ("utf-8", "utf-8-sig", "utf-16", "cp1252")
    ),
    *(
        Trial(
            "scripts",
            PATCH_TABLE,
            f"--name {name}",
            r"48 patches: ",
            refused=False,
            prepare=partial(table, delimiter=delimiter),
        )
        for name, delimiter in (("semicolon", ";"), ("tab", "\t"))
    ),
    *script(
        MIDOG,
        {
            "--size 4": rf"^--size is 4, {WHOLE} of 8 or above",
            "--domain colour": r"colour",
            "--sise 64": unknown("--sise", "prepare_midog.py patches", "--size"),
            "--unit foo --allow_missing true": r"^--unit is 'foo', expected slide or patch",
        },
        midog,
    ),
    *script(
        "prepare_regions.py --annotations $DATA/histology/tiles.json --image_dir $DATA/histology --output $FOLDER/d",
        {
            "": r"--format",
            "--format coc": r"^--format is 'coc', expected geojson, coco,",
            "--format coco": r"tiles\.json: has no lists images, annotations, categories",
            "--format voc": r"tiles\.json: not readable as annotations",
            "--format coco --scaner XR": unknown("--scaner", "prepare_regions.py", "--scanner"),
            "--format coco --box_size 0": r"^--box_size is 0",
        },
    ),
    *script(
        "prepare_camelyon17.py --data_dir $DATA/ct --output $FOLDER/d.json",
        {
            "--worker 2": unknown("--worker", "prepare_camelyon17.py", "--workers"),
            "--workers 0": rf"^--workers is 0, {WHOLE} of 1 or above",
        },
    ),
    *script(
        "make_stylized.py --datalist $DATA/histology/dataset.json --output $FOLDER/new.json",
        {
            "--alpha 2": r"^--alpha is 2, expected a number from 0 to 1",
            "--style /nowhere": unknown("--style", "make_stylized.py", "--styles"),
            "--styles /nowhere": r"/nowhere: there is no such file or folder",
            "--styles $FOLDER": r"holds no image",
            "--encoder $DATA/histology/dataset.json": r"needs both --encoder and --decoder",
            f"--encoder $DATA/weights/{LAMBDA}/model.pt --decoder $DATA/weights/{LAMBDA}/model.pt": r"pytorch-AdaIN",
            "--lists test": r"^--lists is 'test', expected training or all",
            "--style_size 8": rf"^--style_size is 8, {WHOLE} of 64 or above",
            "--output $FOLDER/new.txt": r"new\.txt: expected another \.json file",
        },
        a_file,
    ),
    *script(
        "train_stainnet.py --output $FOLDER/stainnet.pth",
        {
            "": r"^Give either --datalist",
            "--datalist /nowhere.json": r"/nowhere\.json: no such file",
            "--datalist $DATA/ct/dataset.json": r"dataset\.json: entry 0 .*expected an image, a label of 0 or 1",
            "--source_dir $DATA/histology/tiles --teacher_dir /nowhere": r"/nowhere: there is no such folder",
            "--source_dir $DATA/histology/tiles --teacher_dir $DATA/ct": r"ct: holds no image",
            "--source_dir $DATA/histology/tiles --teacher_dir $DATA/histology/patches": r"have no partner of the same",
            "--source_dir $DATA/histology/tiles --teacher_dir $DATA/histology/tiles": r"is both --source_dir and",
        },
        a_file,
    ),
    *script(
        "train_stainnet.py --output $FOLDER/stainnet.pth --datalist $DATA/histology/dataset.json",
        {
            "--teacher vahadane": r"^--teacher is 'vahadane', expected macenko or reinhard",
            "--reference /nowhere.png": r"/nowhere\.png: there is no such file",
            "--domains Leica": r"no domain Leica\. Known: CS,",
            "--split tset": r"the list 'tset' is missing",
            "--val_split training": r"nothing would be held out",
            "--epoch 3": unknown("--epoch", "train_stainnet.py", "--epochs"),
            "--epochs 0": rf"^--epochs is 0, {WHOLE} of 1 or above",
            "--held_out 1": r"^--held_out is 1, expected a number above 0, 0\.5 at most",
            "--device tpu": r"^--device is 'tpu', expected cpu, or cuda",
            "--output $FOLDER/stainnet.txt": r"stainnet\.txt: expected a \.pth file",
            "--output $DATA/histology/dataset.pth": r"would be written over or into .*dataset\.json",
            "--source_dir $DATA/histology/tiles": r"^Give either --datalist",
        },
    ),
    *script(
        "package_bundles.py --output_dir $FOLDER/out",
        {
            "nonesuch": r"nonesuch.*abdominal_unetr_cbs",
            f"{UNETR} --weigths x": unknown("--weigths", "package_bundles.py", "--weights"),
            f"{UNETR} --weights /nowhere.pt": r"/nowhere\.pt",
            f"{UNETR} --weights $DATA/weights/{LAMBDA}/model.pt --variant demo": LAMBDA,
            f"{UNETR} --weights $DATA/weights/{UNETR}/model.pt --variant demoo": r"demoo.*demo",
        },
    ),
    *script(
        f"make_nvflare_job.py {UNETR} --output_dir $FOLDER/out",
        {
            "": r"no datalists were given",
            "/nowhere.json": r"/nowhere\.json: no such file",
            "$DATA/ct/a.nii.gz": r"a\.nii\.gz: not readable as JSON",
            "$DATA/ct/dataset.json --rounds 0": rf"^--rounds is 0, {WHOLE} of 1 or above",
            "$DATA/ct/dataset.json --variant demoo": r"demoo.*demo",
            "$DATA/ct/dataset.json --round 3": unknown("--round", "make_nvflare_job.py", "--rounds"),
        },
    ),
    *script(
        "verify_bundles.py",
        {
            "nonesuch": r"nonesuch",
            f"{UNETR} --run_command false": unknown("--run_command", "verify_bundles.py", "--run_commands"),
            f"{UNETR} --jobs 0": rf"^--jobs is 0, {WHOLE} of 1 or above",
        },
    ),
    *script(
        "overfit_one_case.py --output_dir $FOLDER/out --image $DATA/ct/a.nii.gz",
        {
            "--label /nowhere": r"/nowhere",
            "--label $DATA/ct/a_label.nii.gz --steps 0": rf"^--steps is 0, {WHOLE} of 1 or above",
            "--label $DATA/ct/a_label.nii.gz --step 5": unknown("--step", "overfit_one_case.py", "--steps"),
            "--label $DATA/ct/a_label.nii.gz --bundle foo": r"^--bundle is 'foo', expected ",
            "": r"--label",
        },
    ),
    *script(
        "reproduce.py",
        {
            "nonesuch --output_dir $FOLDER": r"nonesuch.*organ_table",
            "organ_table --dataset_dir /nowhere --output_dir $FOLDER": r"/nowhere",
        },
    ),
    *script(
        "reproduce.py organ_table --dataset_dir $DATA/ct --output_dir $FOLDER",
        {
            "--seed 3": unknown("--seed", "reproduce.py organ_table", "--seeds"),
            "--size huge": r"^--size is 'huge', expected ",
            "--seeds 0": rf"^--seeds is 0, {WHOLE} of 1 or above",
            "--minutes nan": r"^--minutes is '?nan'?, expected a number",
        },
    ),
    *script(
        "reproduce.py generalisation_table --dataset_dir $DATA/histology --output_dir $FOLDER/out",
        {
            "--methods erm,magic": r"^--methods is .*'magic'.*, expected a list, each erm, fusestyle",
            "--methods erm --scanners Leica": r"no domain Leica\. Known: CS,",
            "--methods erm --overlays /nowhere.json": r"/nowhere\.json",
            "--methods erm --datalist tiles.json": r"tiles\.json: .*expected an image, a label of 0 or 1",
        },
    ),
    *script(
        "reproduce.py new_scanner --dataset_dir $DATA/histology --output_dir $FOLDER/out",
        {
            "--finalists magic": r"^--finalists is .*'magic'.*, expected a list, each erm, fusestyle",
            "--finalists dsu,jitter": r"^--finalists is dsu,jitter, expected 3 methods at most beside erm and jitter",
            "--start a/b": r"^--start is 'a/b', expected a name",
            "--pretrained /nowhere.pt": r"/nowhere\.pt: --pretrained is not there",
            "--budget_minutes 0": r"^--budget_minutes is 0, expected a number above 0",
            "--results $DATA/histology/dataset.json": r"dataset\.json: expected the results that this command keeps",
        },
    ),
    *script(
        "reproduce.py small_organs --dataset_dir $DATA/ct --output_dir $FOLDER/out",
        {
            "--arms magic": r"^--arms is .*'magic'.*, expected a list, each plain, cbs",
            "--network vnet": r"^--network is 'vnet', expected unetr, lambda3d",
            "--budget_minutes 0": r"^--budget_minutes is 0, expected a number above 0",
            "--results $DATA/ct/dataset.json": r"dataset\.json: expected the results that this command keeps",
        },
    ),
    *script(
        "reproduce.py camelyon_table --dataset_dir $DATA/histology --output_dir $FOLDER/out",
        {"--methods erm": r"ood_validation", "--seed 3": unknown("--seed", "reproduce.py camelyon_table", "--seeds")},
    ),
    *script(
        "reproduce.py midog_table --table partner --dataset_dir $DATA/histology --output_dir $FOLDER/out",
        {"--scanners Leica": r"no domain Leica", "--crop_size -1": rf"^--crop_size is -1, {WHOLE} of 0 or above"},
    ),
    *script(
        "reproduce.py midog_table --table strap --dataset_dir $DATA/histology --output_dir $FOLDER/out",
        {"--datalist nonesuch.json": r"nonesuch\.json", "--epochs -1": rf"^--epochs is -1, {WHOLE} of 0 or above"},
    ),
    *script(
        "demo.py --output_dir $FOLDER/out",
        {
            "--name nonesuch": r"nonesuch.*abdominal_unetr_cbs",
            "--nmae foo": unknown("--nmae", "demo.py", "--name"),
            "--epochs -1": rf"^--epochs is -1, {WHOLE} of 0 or above",
        },
    ),
    *script(
        "benchmark.py voxel_classifier --data_dir $DATA/ct",
        {"--outputt $FOLDER/x.json": unknown("--outputt", "benchmark.py voxel_classifier", "--output")},
    ),
    *script(
        "benchmark.py nnunet --dataset_dir $DATA/ct --output_dir $FOLDER/out",
        {
            "--networks vnet": r"^--networks is .*'vnet'.*, expected a list, each unetr, lambda3d",
            "--nnunet_python /nowhere": r"/nowhere: is not there\. nnU-Net runs in an environment of its own",
            "--results $DATA/ct/dataset.json": r"dataset\.json: expected the results that this command keeps",
        },
    ),
    *script(
        "pacs.py --url http://127.0.0.1:9/dicom-web --weights $FOLDER/file",
        {
            "": r"^give --study or --patient",
            "--study here": r"^'here' is no UID",
            "--study 1.2 --objects png": r"^--objects is .*each seg, sr or rtstruct",
            "--study 1.2 --interval 0": r"^--interval is 0, expected a number above 0",
            "--study 1.2 --watching true": unknown("--watching", "pacs.py", "--watch"),
        },
        a_file,
    ),
    *script("pacs.py --url here --weights $FOLDER/file", {"--study 1.2": r"^here: no address of a server"}, a_file),
]
