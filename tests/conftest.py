"""What all tests share: one thread, and the server that commands are forked from."""

import gc
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CalledProcessError
from unittest import mock

import pytest
from experiments.fork_server import ForkServer

pytest.register_assert_rewrite("commands", "workflows")


def pytest_configure(config: pytest.Config) -> None:
    """In the process that starts the others, so that the server is none of an xdist worker's children."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors gain nothing from more
    os.environ.setdefault("MPLBACKEND", "agg")  # no display is needed
    if not hasattr(config, "workerinput"):
        server = ForkServer()
        config.add_cleanup(server.close)
        os.environ["TEST_PYTHON"] = server.python


@pytest.fixture(autouse=True)
def no_workers_left() -> Iterator[None]:
    """Those of a training that an error has ended live as long as something refers to it."""
    yield
    if multiprocessing.active_children():
        from torch.utils.data import _utils

        # of a loader that is collected, and not let go, torch waits five seconds for each before it ends them
        with mock.patch.object(_utils, "MP_STATUS_CHECK_INTERVAL", 0.1):
            gc.collect()
        for process in multiprocessing.active_children():
            process.join(5)  # what was ended is gone a moment later
        left = [process.name for process in multiprocessing.active_children()]
        assert not left, f"{left} are alive: a collection after each test that follows would take half a second"


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that the code under test starts are forked, too."""
    monkeypatch.setattr(sys, "executable", os.environ["TEST_PYTHON"])


@pytest.fixture(scope="session")
def cuda_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pretended_cuda.start` needs, in the process that is to have the device."""
    import pretended_cuda  # and torch with it, for which the process that starts the others has no use

    if reason := pretended_cuda.missing():
        pytest.skip(reason)
    try:
        return pretended_cuda.build(tmp_path_factory.mktemp("pretended_cuda"))
    except CalledProcessError as e:
        pytest.skip(f"the pretended device cannot be built: {e.stderr[-300:]}")
