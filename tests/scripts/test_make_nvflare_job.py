"""The job is what NVFlare is given: its clients train and score as its server is told, with MonaiAlgo itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_tools.package import baked_configs, build_network, read_package
from commands import run
from make_nvflare_job import main
from small_runs import CLASSIFY, QUICK, SEGMENT, write_data
from workflows import BUNDLES

from shared.utils import DataError

# A round of a client as NVFlare has it run, from the server's weights. Prints what the test looks at.
CLIENT = """
import json, sys
import torch
from monai.fl.client import MonaiAlgo
from monai.fl.utils.exchange_object import ExchangeObject

algo = MonaiAlgo(**json.loads(sys.argv[1]))
algo.initialize()
sent = torch.load(sys.argv[2], weights_only=True)
metrics = algo.evaluate(ExchangeObject(weights=dict(sent))).metrics
algo.train(ExchangeObject(weights=dict(sent)))
answer = algo.get_weights()
algo.finalize()
print(json.dumps({
    "metrics": [key for key, value in metrics.items() if isinstance(value, float)],
    "changed": any(bool(value.any()) for value in answer.weights.values()),
    "type": answer.weight_type,
    "epoch": algo.trainer.state.epoch,
}))
"""


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def made(folder: Path, name: str = CLASSIFY, **options: Any) -> Path:
    """A job with two clients of made-up data, whose datalists lie in one folder."""
    write_data(name, folder / "data")
    for number in (1, 2):
        shutil.copy(folder / "data" / "dataset.json", folder / "data" / f"{number}.json")
    lists = [str(folder / "data" / f"{number}.json") for number in (1, 2)]
    main(name, *lists, output_dir=str(folder / "out"), variant="demo", **options)
    return folder / "out"


def arguments(config: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each["args"] for each in config["components"] if each["id"] == name)


def test_server_and_clients_have_their_own_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = made(tmp_path, rounds=3, local_epochs=2, seed=7)
    meta = read(out / "job" / "meta.json")
    sites = ["server", "site-1", "site-2"]
    assert meta["deploy_map"] == {f"app_{site}": [site] for site in sites}
    assert meta["min_clients"] == 2
    server = read(out / "job" / "app_server" / "config" / "config_fed_server.json")
    (workflow,) = server["workflows"]
    assert (workflow["args"]["min_clients"], workflow["args"]["num_rounds"]) == (2, 3)
    parts = {value for key, value in workflow["args"].items() if key.endswith("_id")}
    assert parts < {each["id"] for each in server["components"]}
    assert arguments(server, "persistor")["bundle_root"] == str(out / "server")
    for number in (1, 2):
        config = read(out / "job" / f"app_site-{number}" / "config" / "config_fed_client.json")
        client = arguments(config, "client")
        assert client["bundle_root"] == str(out / f"site-{number}")
        assert client["local_epochs"] == 2
        data = {"dataset_dir": str(tmp_path / "data"), "datalist": str(tmp_path / "data" / f"{number}.json"), "seed": 7}
        assert client["train_kwargs"] == {**data, "max_epochs": 6}
        assert client["eval_kwargs"].items() >= {**data, "evaluate_split": "validation"}.items()
    for site in sites:
        assert read(out / site / "configs" / "train.json")["network_def"]["name"] == "resnet18"
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith(f"PYTHONPATH={out / 'server'} nvflare simulator {out / 'job'} ")
    assert said[-1].endswith("-c site-1,site-2 -t 2")


def test_the_first_weights_are_those_of_the_seed_or_those_given(tmp_path: Path) -> None:
    package = read_package(BUNDLES / CLASSIFY, variant="demo")
    torch.manual_seed(3)
    expected = build_network(baked_configs(package), package).state_dict()
    (tmp_path / "a").mkdir()
    found = torch.load(made(tmp_path / "a", seed=3) / "server" / "models" / "start.pt", weights_only=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    given = {key: value / 2 if value.is_floating_point() else value for key, value in expected.items()}
    torch.save(given, tmp_path / "model.pt")
    record = {"name": "halves", "network_overlay": "configs/variants/demo.json"}
    (tmp_path / "model.json").write_text(json.dumps(record))
    (tmp_path / "b").mkdir()
    out = made(tmp_path / "b", weights=str(tmp_path / "model.pt"))
    found = torch.load(out / "server" / "models" / "start.pt", weights_only=True)
    assert all(torch.equal(found[key], given[key]) for key in given)


@pytest.mark.parametrize("name", [SEGMENT, CLASSIFY])
def test_a_client_does_a_round(name: str, tmp_path: Path) -> None:
    out = made(tmp_path, name)
    config = read(out / "job" / "app_site-2" / "config" / "config_fed_client.json")
    (executor,) = config["executors"]
    client = arguments(config, executor["executor"]["args"]["client_algo_id"])
    client["train_kwargs"] |= {key: value for key, value in QUICK[name].items() if key != "max_epochs"}
    for part in ("train_kwargs", "eval_kwargs"):
        client[part]["num_workers"] = 0
    done = run("-c", CLIENT, json.dumps(client), out / "server" / "models" / "start.pt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-5000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert executor["executor"]["args"]["key_metric"] in found["metrics"]
    assert (found["changed"], found["type"], found["epoch"]) == (True, "fl_weight_diff", 1)
    report = read(out / "site-2" / "output" / "evaluation" / "summary.json")
    assert "validation" in json.dumps(report["dataset"])


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("{}")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    options = {"output_dir": str(tmp_path / "out")}
    with pytest.raises(DataError, match="unet: there is no such bundle, expected abdominal_"):
        main("unet", str(tmp_path / "list.json"), **options)
    with pytest.raises(DataError, match="no datalists were given"):
        main(CLASSIFY, **options)
    with pytest.raises(DataError, match=r"gone\.json: no such file"):
        main(CLASSIFY, str(tmp_path / "gone.json"), **options)
    with pytest.raises(DataError, match="full: there is something already"):
        main(CLASSIFY, str(tmp_path / "list.json"), output_dir=str(tmp_path / "full"))
    with pytest.raises(DataError, match=r"list\.json: the list 'training' is missing"):
        main(CLASSIFY, str(tmp_path / "list.json"), **options)
    with pytest.raises(DataError, match=r"list\.json: given twice"):
        main(CLASSIFY, *[str(tmp_path / "list.json")] * 2, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "list.json"]
    write_data(SEGMENT, tmp_path / "ct")
    with pytest.raises(DataError, match=r"dataset\.json: .* as in a datalist of patches"):
        main(CLASSIFY, str(tmp_path / "ct" / "dataset.json"), **options)
    assert not (tmp_path / "out").exists()
