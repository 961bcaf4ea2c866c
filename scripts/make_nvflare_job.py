"""Make a job of NVFlare: a bundle that several clients train together, each on data of its own."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from bundle_tools.archive import write_package
from bundle_tools.bundle import BUNDLES, bundle_names
from bundle_tools.package import Package, baked_configs, build_network, read_package
from command_line import Seed, run_command

from shared.data import load_datalist, load_patches, load_regions
from shared.utils import DataError, atomic_path, write_json
from shared.utils.values import Whole

# By the format of a bundle's output: the mean score by which the server chooses the best weights, and what reads a
# datalist.
KINDS = {
    "segmentation": ("mean_dice", load_datalist),
    "classification": ("auc", load_patches),
    "anchor outputs": ("f1", load_regions),
}
START = "models/start.pt"  # of the server's copy of the bundle: the weights of the first round


def main(
    name: str,
    *datalists: str,
    output_dir: str = "runs/nvflare",
    variant: str = "",
    weights: str = "",
    rounds: Annotated[int, Whole(1)] = 10,
    local_epochs: Annotated[int, Whole(1)] = 1,
    seed: Seed = 0,
) -> None:
    """Write a job for NVFlare's simulator, with a client for each datalist, and print the command that runs it.

    OUTPUT_DIR then holds the job, and a packed copy of the bundle for the server and each client. In each round a
    client scores the server's weights on the validation split of its datalist, and trains on from them. The server
    takes the mean of what the clients have made of its weights, by their numbers of steps.

    Args:
        name: of the bundle.
        datalists: of the clients, with training and validation splits.
        output_dir: a new or empty folder.
        variant: overlays that become part of the configs, separated by commas, as `demo`.
        weights: the model.pt of a training, from which the first round starts; random ones by default.
        rounds: how many.
        local_epochs: of each client in each round. The learning rate's schedule is made for all of a client's epochs.
        seed: of the random weights, and of the clients.
    """
    if name not in bundle_names(BUNDLES):
        raise DataError(f"{name}: there is no such bundle, expected {', '.join(bundle_names(BUNDLES))}.")
    lists = [Path(file).expanduser().resolve() for file in datalists]
    if not lists:
        raise DataError("no datalists were given. Give one for each client, as site_1.json site_2.json.")
    if twice := [str(file) for i, file in enumerate(lists) if file in lists[:i]]:
        raise DataError(f"{twice[0]}: given twice. Give each client a datalist of its own.")
    folder = Path(output_dir).expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: there is something already. Choose a new folder, or delete this one first.")
    package = read_package(BUNDLES / name, weights, variant)
    outputs = package.bundle.metadata["network_data_format"]["outputs"]
    ((metric, read),) = (KINDS[pred["format"]] for pred in outputs.values())
    for file in lists:
        for split in ("training", "validation"):
            read(file, split)
    sites = [f"site-{number}" for number in range(1, len(lists) + 1)]
    configs = {"server": server_config(folder / "server", len(sites), rounds)}
    for site, file in zip(sites, lists, strict=True):
        data = {"dataset_dir": str(file.parent), "datalist": str(file), "seed": seed}
        configs[site] = client_config(folder / site, data, metric, rounds, local_epochs)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        write_bundles(package, temporary, sites, seed)
        write_job(temporary / "job", configs)
    for site, file in zip(sites, lists, strict=True):
        print(f"{site}: {file}")
    server, job, workspace = (shlex.quote(str(folder / name)) for name in ("server", "job", "workspace"))
    print(f"PYTHONPATH={server} nvflare simulator {job} -w {workspace} -c {','.join(sites)} -t {len(sites)}")


def write_bundles(package: Package, folder: Path, sites: Sequence[str], seed: int) -> None:
    """A copy of the packed bundle for the server, with the first weights, and for each client."""
    server = write_package(package, folder / "server")
    for site in sites:
        shutil.copytree(server, folder / site)
    torch.manual_seed(seed)
    network = build_network(baked_configs(package), package)
    (server / "models").mkdir(exist_ok=True)
    torch.save(network.state_dict(), server / START)


def server_config(bundle: Path, clients: int, rounds: int) -> dict[str, Any]:
    """`config_fed_server.json`: federated averaging, which keeps the last weights and those of the best score."""
    common = "nvflare.app_common"
    workflow = {
        "min_clients": clients,
        "num_rounds": rounds,
        "aggregator_id": "aggregator",
        "persistor_id": "persistor",
        "shareable_generator_id": "generator",
        "train_task_name": "train",
    }
    components = {
        "persistor": (
            "monai_nvflare.monai_bundle_persistor.MonaiBundlePersistor",
            {"bundle_root": str(bundle), "source_ckpt_filename": START},
        ),
        "generator": (f"{common}.shareablegenerators.full_model_shareable_generator.FullModelShareableGenerator", {}),
        "aggregator": (
            f"{common}.aggregators.intime_accumulate_model_aggregator.InTimeAccumulateWeightedAggregator",
            {"expected_data_kind": "WEIGHT_DIFF"},
        ),
        "selector": (f"{common}.widgets.intime_model_selector.IntimeModelSelector", {"weigh_by_local_iter": True}),
    }
    gather = f"{common}.workflows.scatter_and_gather.ScatterAndGather"
    return {
        "format_version": 2,
        "workflows": [{"id": "rounds", "path": gather, "args": workflow}],
        "components": [{"id": key, "path": path, "args": args} for key, (path, args) in components.items()],
    }


def client_config(bundle: Path, data: dict[str, Any], metric: str, rounds: int, local_epochs: int) -> dict[str, Any]:
    """`config_fed_client.json`: MonaiAlgo, which trains on the client's data and scores on its validation split."""
    algo = {
        "bundle_root": str(bundle),
        "local_epochs": local_epochs,
        "train_kwargs": {**data, "max_epochs": rounds * local_epochs},
        # intervals are for reports that people read
        "eval_kwargs": {**data, "evaluate_split": "validation", "bootstrap": 1},
    }
    executor = {
        "path": "monai_nvflare.client_algo_executor.ClientAlgoExecutor",
        "args": {"client_algo_id": "client", "key_metric": metric},
    }
    return {
        "format_version": 2,
        "executors": [{"tasks": ["train"], "executor": executor}],
        "components": [{"id": "client", "path": "monai.fl.client.MonaiAlgo", "args": algo}],
    }


def write_job(folder: Path, configs: dict[str, dict[str, Any]]) -> None:
    """The job's folder.

    Args:
        folder: a new one.
        configs: of the server and each client, by whose it is.
    """
    for site, config in configs.items():
        kind = "server" if site == "server" else "client"
        (place := folder / f"app_{site}" / "config").mkdir(parents=True)
        write_json(place / f"config_fed_{kind}.json", config)
    deployed = {f"app_{site}": [site] for site in configs}
    write_json(folder / "meta.json", {"name": "bundle", "min_clients": len(configs) - 1, "deploy_map": deployed})


if __name__ == "__main__":
    run_command(main)
