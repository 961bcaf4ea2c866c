"""What `python -m monai.bundle run` refuses before it does anything."""

from __future__ import annotations

import difflib
import itertools
import json
import re
from pathlib import Path
from typing import Any

import fire
import pytest
from bundle_tools.bundle import Bundle
from commands import run
from monai.bundle import ConfigParser

from shared.utils.bundle_run import (
    SETTINGS,
    CommandLine,
    check_names,
    check_needs,
    check_nothing,
    check_order,
    check_references,
    check_values,
    help_text,
)
from shared.utils.errors import DataError
from shared.utils.settings import NEEDS

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.name for path in (ROOT / "bundles").iterdir() if path.is_dir())
UNETR, CLASSIFIER, DETECTOR = "abdominal_unetr_cbs", "mitosis_fusestyle_cls", "mitosis_retinanet_fusestyle"


def configs(*names: str) -> list[str]:
    return [f"configs/{name}.json" for name in names]


TRAIN, EVALUATE, INFERENCE = configs("train"), configs("train", "evaluate"), configs("inference")


def monai_bundle(bundle: str, files: list[str], *words: str) -> tuple[int, str, list[str]]:
    """The exit status, what was printed to stdout, and the lines that tell of an error."""
    done = run("-m", "monai.bundle", "run", *words, "--config_file", files, cwd=ROOT / "bundles" / bundle)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, [line[7:] for line in done.stderr.splitlines() if line.startswith("Error: ")]


@pytest.mark.parametrize(
    ("bundle", "files", "option", "meant"),
    [
        (UNETR, TRAIN, "--max_epoch=3", "max_epoch: no such setting of configs/train.json; did you mean max_epochs?"),
        (CLASSIFIER, TRAIN, "--resumee=true", "did you mean resume?"),
        (UNETR, EVALUATE, "--evaluate_splitt=validation", "did you mean evaluate_split?"),
        (UNETR, EVALUATE, "--evaluate_splitt=x", "no such setting of configs/train.json and configs/evaluate.json;"),
        (CLASSIFIER, INFERENCE, "--treshold=0.9", "did you mean threshold?"),
        (DETECTOR, INFERENCE, "--notresume", "tresume: no such setting"),
        (UNETR, TRAIN, "--train#trainre=3", "did you mean train#trainer?"),
        (UNETR, TRAIN, "--train::trainre=3", "did you mean train#trainer?"),
        (DETECTOR, TRAIN, "--qqqqq=3", "qqqqq: no such setting of configs/train.json; see --help"),
    ],
)
def test_an_unknown_option_is_named_with_what_was_meant(
    bundle: str, files: list[str], option: str, meant: str, tmp_path: Path
) -> None:
    status, _, errors = monai_bundle(bundle, files, option, f"--output_dir={tmp_path / 'out'}")
    assert status == 1
    assert len(errors) == 1
    assert meant in errors[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["reweighting", "reweighting#loss", "reweighting::loss", "network_def#hidden_size"])
@pytest.mark.parametrize(("given", "what"), [("None", "None, which MONAI takes"), ("null", "the text 'null'")])
def test_nothing_is_given_as_an_expression(option: str, given: str, what: str, tmp_path: Path) -> None:
    status, _, errors = monai_bundle(UNETR, TRAIN, f"--{option}", given, f"--output_dir={tmp_path / 'out'}")
    assert status == 1
    (error,) = errors
    assert error.startswith(f"{option} is {what}")
    assert error.endswith(f"--{option} '$None'")
    assert list(tmp_path.iterdir()) == []


def test_nothing_where_nothing_is_stays_so() -> None:
    content = content_of(UNETR, "train")
    assert content["pretrained"] is None
    check_nothing(CommandLine(TRAIN, {"pretrained": None, "fold": "$None"}, ("pretrained",)), content)
    check_nothing(CommandLine(TRAIN, {"reweighting": None}), content)  # of an args_file, where MONAI takes it
    check_nothing(CommandLine(TRAIN, {"workflow_type": None}, ("workflow_type",)), content)
    with pytest.raises(DataError, match=r"^reweighting is None"):
        check_nothing(CommandLine(TRAIN, {"reweighting": None}, ("reweighting",)), content)
    with pytest.raises(
        DataError, match=r"^fold is None"
    ):  # on the command line; an args_file says 2, which MONAI takes
        check_nothing(CommandLine(TRAIN, {"fold": 2}, ("fold",)), content)


def test_the_options_of_an_args_file_are_checked_too(tmp_path: Path) -> None:
    (tmp_path / "args.json").write_text(json.dumps({"config_file": TRAIN, "max_epoch": 3}))
    command = ("-m", "monai.bundle", "run", "--args_file", tmp_path / "args.json")
    done = run(*command, cwd=ROOT / "bundles" / UNETR)
    assert "Error: max_epoch: no such setting of configs/train.json; did you mean max_epochs?" in done.stderr
    done = run(*command, "--max_epochs", 0, cwd=ROOT / "bundles" / UNETR)
    assert done.returncode == 1


@pytest.mark.parametrize("files", [TRAIN, INFERENCE])
def test_a_word_that_belongs_to_no_option_is_named(files: list[str]) -> None:
    status, _, errors = monai_bundle(UNETR, files, "stray")
    assert status == 1
    assert errors == [f"'stray' is no option, and no section of {files[0]} to run. Options begin with --."]


def content_of(bundle: str, *names: str) -> dict[str, Any]:
    return Bundle(ROOT / "bundles" / bundle).merged(list(names))


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 3, "run_id": "run", "init_id": "x", "meta_file": "m.json", "logging_file": False},
        {"tracking": "mlflow", "tracking_uri": "x", "experiment_name": "y", "run_name": "z"},
        {"learning_rate": "$@base_rate * 2", "base_rate": 1e-3},  # new, and referred to
        {"train#trainer#max_epochs": 3, "train::handlers::0::seed": 5, "train#handlers#0#_disabled_": True},
        {"network_def#qkv_bias": True},  # an argument of a component
        {"labels#tumour": 14},  # an entry of a table
        {"_meta_#version": "1"},
    ],
)
def test_what_the_configuration_knows_is_taken(options: dict[str, Any]) -> None:
    check_names(CommandLine(TRAIN, options), content_of(UNETR, "train"))


@pytest.mark.parametrize(
    "options", [{"tracking_uri": "x"}, {"base_rate": 1e-3}, {"train#new": 1}, {"new#trainer": 1}, {"run_id": "none"}]
)
def test_what_nothing_reads_is_not(options: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        check_names(CommandLine(TRAIN, options), content_of(UNETR, "train"))


@pytest.mark.parametrize("bundle", BUNDLES)
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["variants/demo", "train"], "\"['configs/train.json','configs/variants/demo.json']\""),
        (["train", "inference"], "are whole configurations"),
        (["train", "multi_gpu_evaluate", "evaluate"], "'configs/evaluate.json','configs/multi_gpu_evaluate.json']"),
        (["train", "evaluate", "multi_gpu_train"], "it replaces the weights that configs/evaluate.json loads"),
    ],
)
def test_an_order_in_which_a_file_undoes_another_is_refused(bundle: str, wrong: list[str], said: str) -> None:
    tree = Bundle(ROOT / "bundles" / bundle)
    with pytest.raises(DataError, match=re.escape(said)):
        check_order(CommandLine(configs(*wrong), {}), {f"configs/{name}.json": tree.config(name) for name in wrong})


@pytest.mark.parametrize("bundle", BUNDLES)
def test_every_combination_of_the_collection_is_taken(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Bundle(ROOT / "bundles" / bundle)
    monkeypatch.chdir(ROOT / "bundles" / bundle)
    for names in tree.combinations():
        content = tree.merged(names)
        line, contents = CommandLine(configs(*names), {}), {f"configs/{name}.json": tree.config(name) for name in names}
        check_order(line, contents)
        check_references(line, contents, content)
        check_names(CommandLine(configs(*names), dict.fromkeys(content)), content)
        check_values(content)


def test_an_overlay_of_another_configuration_is_refused(tmp_path: Path) -> None:
    for files, said in (
        (configs("inference", "variants/tcf"), "configs/variants/tcf.json reads class_names, which"),
        (configs("train", "multi_gpu_evaluate"), "; configs/evaluate.json"),
        (configs("train", "variants/dicom"), "configs/inference.json would"),
    ):
        places = [f"--output_dir={tmp_path / 'out'}", *[f"--ckpt_dir={tmp_path}"] * (files[0] == TRAIN[0])]
        status, _, errors = monai_bundle(UNETR, files, *places)
        assert status == 1
        assert said in errors[0]
    assert not [*tmp_path.iterdir()]


def refer(folder: Path, *overlays: dict[str, Any], **options: Any) -> None:
    """Check what overlays of one's own, over a configuration of two keys, refer to."""
    contents = {"whole.json": {"imports": [], "a": {"b": 1}, "gone": "@nowhere"}}
    contents |= {f"{i}.json": overlay for i, overlay in enumerate(overlays)}
    files = []
    for name, content in contents.items():
        files.append(str(folder / name))
        (folder / name).write_text(json.dumps(content))
    loaded = {file: ConfigParser.load_config_file(file) for file in files}
    before = json.dumps([options, loaded])
    check_references(CommandLine(files, options), loaded, ConfigParser.load_config_files(files))
    assert json.dumps([options, loaded]) == before


@pytest.mark.parametrize(
    ("overlays", "options"),
    [
        ([{"mine": "$@a#b + @_meta_#version"}], {}),
        ([{"mine": {"c": 2, "d": "$@#c + @##a#b"}}, {"list": [3, "$@#0 * 2"]}], {}),  # relative
        ([{"mine": "@new"}], {"new": 3}),
        ([{"mine": "@a#c"}], {"a#c": 3}),
        ([{"mine": "@a::c"}], {"a": {"c": 3}}),
        ([{"mine": "%a", "d": "@mine#b"}], {}),  # a macro
        ([{"mine": "@new#x#b"}], {"new": {"x": "%a"}}),
        ([{"mine": "@new"}, {"mine": 5}], {}),  # replaced by a later file
        ([{"mine": "@new"}], {"mine": 5}),
        ([{"mine": "@new"}, {"new": 3}], {}),
        ([{"a#c": 2, "mine": "@of_training_alone"}], {}),  # for what it is laid over, too
        ([{"mine": "@tracking_uri"}], {"tracking": "mlflow"}),
        ([{"+a": {"c": 2}, "mine": "@a#c"}], {}),
    ],
)
def test_what_an_overlay_may_refer_to(overlays: list[dict[str, Any]], options: dict[str, Any], tmp_path: Path) -> None:
    refer(tmp_path, *overlays, **options)


@pytest.mark.parametrize(
    "overlays",
    [[{"mine": "$@new + 1"}], [{"a#b": "@new", "c": 3}], [{"c": 3}, {"d": {"e": ["@new"]}}], [{"+a": {"c": "@new"}}]],
)
def test_what_it_may_not(overlays: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"new": 3}')
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match=r"\d\.json reads new, which .* do not know; .*other\.json would\. Lay it over"):
        refer(tmp_path, *overlays)


def test_inference_may_be_begun_or_given_a_network_by_an_overlay() -> None:
    own = {"initialize": ["$check_command_line()"], "network": "$torch.jit.load(@ckpt_path)"}
    contents = {INFERENCE[0]: content_of(UNETR, "inference"), "own.json": own}
    check_order(CommandLine([*contents], {}), contents)


def test_an_overlay_before_its_base_never_trains(tmp_path: Path) -> None:
    status, _, errors = monai_bundle(UNETR, configs("variants/demo", "train"), f"--output_dir={tmp_path / 'out'}")
    assert status == 1
    assert len(errors) == 1
    assert list(tmp_path.iterdir()) == []


WRONG = {
    **{name: ["abc", 0, -3, 1.5, "3"] for name in ("max_epochs", "batch_size", "val_interval")},
    "learning_rate": ["fast", float("nan"), "nan", -1, 0, 1e30],
    "num_workers": [-1, 0.5],
    "save_seconds": ["abc", -1],
    "seed": ["abc", -1],
    "cache": ["foo", None],
    "fold": ["x", -1],
    "device": ["cuda:7", "gpu", 3.5],
    **{name: [-5, 0, "a"] for name in ("crop_size", "tile_size", "tiles_per_epoch", "top_k")},
    "threshold": [7, 40, "nan", -0.1],
    "count_area_mm2": [-2, 0],
    "mpp": [(0, 25), "abc", "nan", 0, -1],
    "spacing": [[-1, 1, 1], [1, 2], "1,1,1", 5],
    "roi_size": [[30, 30, 30], 96],
    "labels": ["{'liver': 1", ["liver"], {}, {"liver": "1"}, {"liver": 1.0}],
    "train_domains": ["XR", [], 5, ["XR", "XR"]],
    "resume": ["maybe", 1],
    "tile_shares": [{"mitotic": 5}, {"x": 1}],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG.items() for v in values])
def test_a_value_that_a_setting_cannot_have_is_named_with_what_is_expected(name: str, value: Any) -> None:
    with pytest.raises(DataError) as error:
        check_values({name: value})
    assert str(error.value) == f"{name} is {value!r}, expected {SETTINGS[name][0].expected}."


def test_expressions_are_left_to_the_configuration() -> None:
    check_values({"max_epochs": "$3 * 2", "batch_size": "@num_samples", "spacing": "%other.json#spacing"})


@pytest.mark.parametrize(
    ("bundle", "files", "option", "said"),
    [
        (UNETR, TRAIN, "--max_epochs=abc", "max_epochs is 'abc', expected a whole number of 1 or above."),
        (
            DETECTOR,
            INFERENCE,
            "--mpp=0,25",
            "mpp is (0, 25), expected a number from 0.05 to 4, or None (as the file says).",
        ),
        (CLASSIFIER, INFERENCE, "--threshold=nan", "threshold is 'nan', expected a number from 0 to 1."),
    ],
)
def test_a_wrong_value_ends_the_run_before_it_begins(
    bundle: str, files: list[str], option: str, said: str, tmp_path: Path
) -> None:
    status, _, errors = monai_bundle(bundle, files, option, f"--output_dir={tmp_path / 'out'}")
    assert (status, errors) == (1, [said])
    assert list(tmp_path.iterdir()) == []


NO_MEMORY = "$(_ for _ in ()).throw(torch.OutOfMemoryError('CUDA out of memory.'))"


@pytest.mark.parametrize(
    ("bundle", "files", "lower"),
    [
        (UNETR, TRAIN, "--batch_size, --num_samples, --sw_batch_size, --roi_size, or give --save_seconds 0, which"),
        (UNETR, INFERENCE, "--sw_batch_size, or choose --stitching_device cpu; --amp true takes less"),
        (DETECTOR, TRAIN, "--batch_size, --tile_size, or give --save_seconds 0, which"),
    ],
)
def test_where_a_gpu_lacks_memory_the_bundles_own_settings_are_named(
    bundle: str, files: list[str], lower: str, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    places = [f"--ckpt_dir={folder}", f"--output_dir={folder}", f"--leakage={NO_MEMORY}"]
    status, _, errors = monai_bundle(bundle, files, *(places if files == TRAIN else [f"--output_dir={NO_MEMORY}"]))
    assert (status, len(errors)) == (1, 1)
    assert errors[0].startswith(f"the GPU's memory is not enough (CUDA out of memory). Lower {lower}")


def test_help_prints_the_settings_and_runs_nothing(tmp_path: Path) -> None:
    status, printed, errors = monai_bundle(UNETR, TRAIN, "--help", f"--output_dir={tmp_path / 'out'}")
    assert (status, errors) == (0, [])
    assert "--max_epochs 1000" in printed
    assert "epochs (a whole number of 1 or above)" in printed
    assert list(tmp_path.iterdir()) == []


# Keys with a plain value that are no settings: sections, and components that overlays put in the place of nothing.
NO_SETTINGS = {
    "bundle",
    "version",
    "finalize",
    "handlers",
    "imports",
    "initialize",
    "key_metric",
    "mixing",
    "postprocessing",
    "run",
    "stain_jitter",
    "stylized",
    "train_metrics",
    "validation_metrics",
}


@pytest.mark.parametrize("bundle", BUNDLES)
def test_every_setting_is_in_the_table_and_in_the_help(bundle: str) -> None:
    tree = Bundle(ROOT / "bundles" / bundle)
    for names in (["train"], ["train", "evaluate"], ["inference"]):
        content = tree.merged(names)
        plain = {
            key
            for key, value in content.items()
            if not (isinstance(value, str) and value.startswith(("$", "@")))
            and not (isinstance(value, dict) and ("_target_" in value or {"dataset", "labels"} & value.keys()))
            and not (isinstance(value, list) and any(isinstance(item, dict) for item in value))
            and key != "_meta_"
        }
        assert plain - NO_SETTINGS <= SETTINGS.keys()
        files = configs(*names)
        printed = help_text(CommandLine(files, {}), {f"configs/{name}.json": tree.config(name) for name in names})
        assert [name for name in content if name in SETTINGS and f"--{name} " not in printed] == []


def test_every_setting_of_the_table_is_one_of_a_bundle() -> None:
    trees = [Bundle(ROOT / "bundles" / bundle) for bundle in BUNDLES]
    keys = itertools.chain.from_iterable(
        tree.merged(names) for tree in trees for names in (["train"], ["train", "evaluate"], ["inference"])
    )
    assert SETTINGS.keys() - set(keys) - {"label_ids"} == set()


def test_outside_of_monai_bundle_nothing_is_checked() -> None:
    code = "import sys; sys.argv += ['run', '--max_epoch', '3']; from shared.utils import check_command_line as c; c()"
    done = run("-c", code)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("bundle", BUNDLES)
def test_what_the_card_says_of_settings_holds(bundle: str) -> None:
    """`--name value` in its text: a setting of this bundle, and a value that it may have."""
    tree = Bundle(ROOT / "bundles" / bundle)
    known = {key for names in tree.combinations() for key in tree.merged(names)}
    text = re.sub(r"```.*?```", "", tree.card, flags=re.DOTALL)
    spans = re.findall(r"`(--[^`]+)`", text)
    said = [part.partition(" ")[::2] for span in spans for part in span.removeprefix("--").split(" --")]
    assert len(said) > 10
    for name, value in said:
        if name in SETTINGS:
            assert name in known
            if value and not re.match(r"FILE|file|…|models/", value):
                check_values({name: fire.parser.DefaultParseValue(value.strip('"'))})
        else:
            assert difflib.get_close_matches(name, SETTINGS, cutoff=0.8) == []


@pytest.mark.parametrize(
    ("options", "others"),
    [
        ({"classifier_weight": 0.5, "threshold": 0.5}, "--classifier"),
        ({"cascade_path": "cascade.json"}, "--classifier"),
        ({"classifier_flips": True}, "--classifier or --subtype_classifier"),
        ({"subtype_threshold": 0.3}, "--subtype_classifier"),
    ],
)
def test_an_option_without_effect_is_refused(options: dict[str, Any], others: str) -> None:
    content = content_of(DETECTOR, "inference")
    with pytest.raises(DataError, match=f"--{next(iter(options))} has no effect without {others}. Give that, too"):
        check_needs(CommandLine(INFERENCE, options), content)
    given = {other.removeprefix("--"): "model.pt" for other in others.split(" or ")[:1]}
    check_needs(CommandLine(INFERENCE, {**options, **given}), content)
    check_needs(CommandLine(INFERENCE, options), {**content, **given})  # of a package


def test_needs_are_settings() -> None:
    assert {name for group in (*NEEDS, *NEEDS.values()) for name in group} <= SETTINGS.keys()
