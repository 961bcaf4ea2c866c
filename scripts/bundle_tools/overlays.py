"""Whether overlays fit their bases, and inference and evaluation repeat what training does."""

from __future__ import annotations

import ast
import itertools
import json
import re
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver

from .bundle import Bundle, has, leaves, read_json, strings
from .names import expression_faults, import_faults, target_fault


def check_references(bundle: Bundle) -> list[str]:
    """Every key, component, import, reference, macro and file that the configs name exists, in all combinations."""
    faults = overlay_faults(bundle)
    for names in bundle.combinations():
        content, wrong = bundle.try_merged(names)
        faults += [wrong] * bool(wrong)
        earlier = set(faults)
        faults += [
            f"configs/{names[-1]}.json: {fault}"
            for fault in content_faults(content, bundle)
            # a fault of a base shows in everything that is laid over it
            if not any(f"configs/{name}.json: {fault}" in earlier for name in names)
        ]
    return list(dict.fromkeys(faults))


def overlay_faults(bundle: Bundle) -> list[str]:
    """Keys of overlays that replace nothing and that nothing reads: mistyped ones, which MONAI accepts silently."""
    faults = []
    for *base, name in bundle.combinations():
        if not base or not (under := bundle.try_merged(base)[0]):
            continue
        content = bundle.config(name)
        text = " ".join(strings(content))
        for key in content:
            plain = key.removeprefix("+").replace("::", "#")
            parent = plain.rpartition("#")[0]
            component = bool(parent) and has(under, parent) and is_component(ConfigParser(under)[parent])
            read = re.search(rf"@{re.escape(plain)}(?!\w)", text) and not name.startswith("variants/")
            if not (has(under, plain) or read or component):
                faults.append(f"configs/{name}.json: {key} is not in {' and '.join(base)}, and nothing reads it")
    return faults


def content_faults(content: dict[str, Any], bundle: Bundle) -> list[str]:
    """What merged configs name that is not there."""
    parser, faults, known = ConfigParser(content), [], {"torch": "torch", "monai": "monai", "np": "numpy"}
    own = {key: value for key, value in content.items() if key != ConfigParser.meta_key}
    values = [(key, value) for key, value in leaves(own) if isinstance(value, str)]
    for key, value in values:
        if is_import(value):
            given, wrong = import_faults(value[1:], bundle)
            known |= given
            faults += [f"{key}: {fault}" for fault in wrong]
    for key, value in values:
        value = ConfigParser.resolve_relative_ids(key, value)
        references = ReferenceResolver.match_refs_pattern(value)
        missing = [f"@{name.replace('::', '#')} is not there" for name in references if name not in parser]
        if value.startswith("%"):
            missing += macro_faults(value, parser, bundle)
        elif value.startswith("$") and not is_import(value):
            missing += expression_faults(value, known, bundle)
        elif key.endswith("_target_") and not references and (fault := target_fault(value, bundle)):
            missing.append(f"{value}: {fault}")
        elif value.startswith("configs/") and not (bundle.folder / value).is_file():
            missing.append(f"{value} is not in the bundle")
        faults += [f"{key}: {fault}" for fault in missing]
    return faults


def is_component(content: Any) -> bool:
    return isinstance(content, dict) and "_target_" in content


def is_import(value: str) -> bool:
    return re.match(r"\$\s*(import|from)\s", value) is not None


def macro_faults(value: str, parser: ConfigParser, bundle: Bundle) -> list[str]:
    """What is wrong with a `%id`, or a `%file#id`, whose file MONAI looks for from the working folder."""
    path, key = ConfigParser.split_path_id(value[1:])
    if not path:
        return [] if key in parser else [f"{value}: there is no {key}"]
    if not (bundle.folder / path).is_file():
        return [f"{value}: there is no {path} in the bundle"]
    return [] if has(read_json(bundle.folder / path), key) else [f"{value}: {path} has no {key}"]


def check_overlays(bundle: Bundle) -> list[str]:
    """A variant replaces whole top-level keys; one that changes the network fits training and inference alike.

    Only so do the weights of such a variant work in both, and does their record name the overlay that they need.
    """
    faults = []
    train, inference = bundle.config("train"), bundle.config("inference")
    for name in (name for name in bundle.names if name.startswith("variants/")):
        content, where = bundle.config(name), f"configs/{name}.json"
        faults += [f"{where}: is empty"] * (not content)
        faults += [f"{where}: {key} is not a top-level key" for key in content if "#" in key or "::" in key]
        if "network_def" in content:
            plain = [key.removeprefix("+") for key in content]
            absent = [key for key in plain if not (key in train and key in inference)]
            faults += [f"{where}: changes the network, but {key} is not in both train and inference" for key in absent]
            found = content.get("network_overlay")
            faults += [f"{where}: network_overlay is {found!r}, expected {where!r}"] * (found != where)
    return faults


# What the layers that only act in training are given; a network has the same weights and the same output without them.
TRAINING_ONLY = {"fusestyle_places", "style_layer"}
# Where results go and how much is done at once, which training and inference may each have their own way.
RUN_ONLY = {"bundle_root", "output_dir", "ckpt_path", "device", "batch_size", "num_workers", "record"}
# Arguments of steps that do not change the image, or say what other images there are.
LABELS_ONLY = ("keys", "label_key", "hu_key", "labels", "label_ids", "entries")


def check_drift(bundle: Bundle) -> list[str]:
    """Training and inference have the same network, the same deterministic steps before it, and the same values.

    Where the record of the weights may change a value, in inference and evaluation, its default is that of training.
    """
    train, inference = bundle.config("train"), bundle.config("inference")
    if not train or not inference:
        return []
    where, faults = "configs/inference.json", name_faults(bundle)
    if train.get("network_def") != inference.get("network_def"):
        faults.append(f"{where}: network_def differs from that of train.json")
    roots = ["network_def", "preprocessing", "inferer"]
    keys = what_is_read(inference, [*roots, "network_overlay"]) - RUN_ONLY - TRAINING_ONLY - set(roots)
    evaluate = {k: v for k, v in bundle.config("evaluate").items() if recorded_default(k, v) != v}
    repeated = [(where, key, inference[key]) for key in sorted(keys & train.keys())]
    repeated += [("configs/evaluate.json", key, value) for key, value in evaluate.items()]
    for file, key, value in repeated:
        theirs = recorded_default(key, value)
        ours = train.get(key if theirs == value else recorded_key(key, train))
        if theirs is not None and ours != theirs:  # null: as the image's file says
            faults.append(f"{file}: {key} is {json.dumps(theirs)}, train.json has {json.dumps(ours)}")
    if "image_mean" in what_is_read(inference, ["inferer"]):
        return faults  # the inferer reads and normalises by itself, as it needs
    theirs = steps_on_image(inference, "preprocessing")
    for ours, source in (
        (steps_on_image(train, "validate#preprocessing"), "train.json"),
        (steps_on_image(bundle.try_merged(["train", "evaluate"])[0], "validate#preprocessing"), "evaluate.json"),
    ):
        for i, (a, b) in enumerate(itertools.zip_longest(ours, theirs)):
            if ours and a != b:
                faults.append(f"{where}: step {i} of preprocessing is {b}, {source} validates with {a}")
                break
    return faults


def name_faults(bundle: Bundle) -> list[str]:
    """Training records the name and version of its bundle, by which inference knows its weights."""
    train, inference = bundle.config("train"), bundle.config("inference")
    named = {"configs/train.json: bundle": (train, "bundle", bundle.name)} if not bundle.is_packed else {}
    named["configs/train.json: version"] = (train, "version", bundle.metadata.get("version"))
    named["configs/inference.json: bundle"] = (inference, "bundle", train.get("bundle"))
    return [
        f"{where} is {content[key]!r}, expected {wanted!r}"
        for where, (content, key, wanted) in named.items()
        if key in content and content[key] != wanted
    ]


def what_is_read(content: dict[str, Any], keys: list[str]) -> set[str]:
    """These keys of a config and all top-level keys that they refer to, however many references away."""
    found, left = set(), [key for key in keys if key in content]
    while left:
        found.add(key := left.pop())
        references = [name for text in strings(content[key]) for name in ReferenceResolver.match_refs_pattern(text)]
        left += [name.partition("::")[0] for name in references if name.partition("::")[0] in content.keys() - found]
    return found


def recorded_default(key: str, value: Any) -> Any:
    """VALUE of `$@record.get('KEY', VALUE)`, which the weights' record may change; anything else as it is."""
    match = re.fullmatch(rf"\$@record\.get\('{key}', (.+)\)", value) if isinstance(value, str) else None
    return ast.literal_eval(match[1]) if match else value


def recorded_key(key: str, train: dict[str, Any]) -> str:
    """Which key of train.json the weights' record holds under `key`: another where `settings` says so."""
    source = train.get("settings", {}).get(key, "")
    return source[1:] if isinstance(source, str) and source[1:] in train else key


def steps_on_image(content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The transforms of a pipeline as they act on the image: without what they do to the label, and without types."""
    if not has(content, key):
        return []
    steps = transforms_of(content, key)
    plain = [{k: v for k, v in step.items() if k not in LABELS_ONLY} for step in steps]
    return [
        {k: v[0] if k == "mode" and isinstance(v, list) else v for k, v in step.items()}
        for step in plain
        if step["_target_"] != "EnsureTyped"
    ]


def transforms_of(content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The transforms under a key, those that it refers to included, in their order."""
    found = ConfigParser(content)[key]
    if isinstance(found, dict):
        found = found.get("transforms", [found])
    if isinstance(found, list):
        return [step for step in found if isinstance(step, dict)]
    names = ReferenceResolver.match_refs_pattern(found) if isinstance(found, str) else {}
    return [step for name in names if has(content, name) for step in transforms_of(content, name)]


def check_metrics(bundle: Bundle) -> list[str]:
    """Every metric that the configs name is computed: it is a key of the engines' metrics, or the package has it."""
    literals = {name for _, text in bundle.code() for name in re.findall(r"['\"](\w+)['\"]", text)}
    faults = []
    for names in bundle.combinations():
        content, _ = bundle.try_merged(names)
        computed = {
            name
            for engine in (content.get("train"), content.get("validate"), content)
            for key in ("key_metric", "additional_metrics", "train_metrics", "validation_metrics")
            if isinstance(engine, dict) and isinstance(engine.get(key), dict)
            for name in engine[key]
        }
        for key, value in leaves(content):
            value = content.get(value[1:], value) if isinstance(value, str) and value.startswith("@") else value
            wanted = [value] if re.search(r"#(metric_name|metrics#\d+)$", key) else []
            wanted += re.findall(r"metrics\[['\"](\w+)['\"]\]", value) if isinstance(value, str) else []
            missing = [name for name in wanted if name not in computed | literals]
            faults += [f"configs/{names[-1]}.json: {key} wants {name}, which nothing computes" for name in missing]
    return list(dict.fromkeys(faults))
