"""Forked commands against the same commands in a Python of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import PYTHON, run
from experiments import fork_server
from experiments.fork_server import check_threads

pytestmark = pytest.mark.skipif(sys.executable == PYTHON, reason="commands are forked on Linux alone")

MODULE = "import sys\nif __name__ == '__main__':\n    print(sys.argv, __name__, __spec__ and __spec__.name, __file__)\n"
ATEXIT = "import atexit, sys; atexit.register(print, 'later'); print('first'); "
LOGGING = "import logging; logging.warning('one'); logging.getLogger('a').info('no'); logging.error('two')"
WARNINGS = "import warnings; warnings.warn('w', DeprecationWarning); warnings.warn('v', ImportWarning)"
COMMANDS = {
    "arguments": ["-c", "import sys; print(sys.argv)", "--a", "b c", "-m", "ünï"],
    "module": ["-m", "some.module", "x", "--y"],
    "script": ["some/module.py", "x", "--y"],
    "places": ["-c", "import os, sys; print(os.getcwd(), sys.path)"],
    "path of a script": ["some/path.py"],
    "the script's neighbour": ["some/neighbour.py"],
    "environment": ["-c", "import os, json; print(json.dumps(dict(os.environ), sort_keys=True))"],
    "no module": ["-m", "some.nothing"],
    "no script": ["some/nothing.py"],
    "syntax": ["-c", "a b"],
    "annotations": ["-c", "def f(a: int): pass\nprint(f.__annotations__)"],
    "exception": ["-c", ATEXIT + "1 / 0"],
    "status": ["-c", ATEXIT + "sys.exit(3)"],
    "message": ["-c", ATEXIT + "sys.exit('a message')"],
    "hook": ["-c", ATEXIT + "sys.excepthook = lambda *a: print(a[1], file=sys.stderr); 1 / 0"],
    "interrupt": ["-c", ATEXIT + "raise KeyboardInterrupt"],
    "interrupted module": ["-m", "some.interrupted"],
    "signal": ["-c", ATEXIT + "import os; os.kill(os.getpid(), 15)"],
    "crash": ["-c", ATEXIT + "sys.stdout.flush(); import os; os.abort()"],
    "_exit": ["-c", ATEXIT + "import os; os._exit(4)"],
    "logging": ["-c", LOGGING],
    "warnings": ["-c", "import monai; " + WARNINGS],  # MONAI has a form of its own for them
    "warnings as errors": ["-W", "error", "-c", WARNINGS],
    "unbuffered": ["-u", "some/crash.py", "x"],
    "options": ["-E", "-c", "import sys; print(sys.flags)"],
    "input": ["-c", "print(input(), input())"],
    "umask": ["-c", "import os; print(os.umask(0))"],
    "cores": ["-c", "import os; print(os.sched_getaffinity(0))"],
    "handlers": ["-c", "import signal; print([signal.getsignal(s) for s in sorted(signal.valid_signals())])"],
    "children": ["-c", "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1); 1 / 0'])"],
    "spawned": ["some/spawn.py"],
}
FILES = {
    "crash": "import os, sys; print(sys.argv); os._exit(1)",
    "__init__": "",
    "module": MODULE,
    "path": "import sys; print(sys.path)",
    "neighbour": "import path",
    "interrupted": "raise KeyboardInterrupt",
    "spawn": "import multiprocessing as m, os\n"
    "def square(x): return x * x\n"
    "if __name__ == '__main__':\n    with m.get_context('spawn').Pool(1) as pool: print(pool.map(square, [1, 2]))\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "some").mkdir()
    for name, text in FILES.items():
        (tmp_path / "some" / f"{name}.py").write_text(text)
    return tmp_path


def own_lines(text: str) -> list[str]:
    """Without the frames of runpy, and with the same name of Python."""
    lines = text.replace(PYTHON, sys.executable).splitlines()
    inside = False
    kept = []
    for line in lines:
        if line.startswith("  File "):
            inside = "<frozen runpy>" in line
        elif not line.startswith("    "):
            inside = False
        if not inside:
            kept.append(line)
    return kept


def on_one_core_without_hangups() -> None:
    os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def with_signals() -> None:
    """A shell that starts the tests in the background may have set SIGINT to be ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_forked_command_does_what_a_process_does(folder: Path, name: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(folder / "added"), "SOMETHING": "ü"}
    options = {"cwd": folder, "env": environment, "input": "a\nb\n", "umask": 0o27}
    options["preexec_fn"] = on_one_core_without_hangups
    forked = run(*COMMANDS[name], **options)
    real = run(*COMMANDS[name], python=sys.executable, **options)
    assert forked.returncode == real.returncode, forked.stderr
    assert forked.stdout == real.stdout
    assert own_lines(forked.stderr) == own_lines(real.stderr)


def test_it_is_a_fork_that_runs() -> None:
    """Not the exec that stands in where a fork will not do."""
    loaded = "import sys; print('torch' in sys.modules, 'shared' in sys.modules, 'scripts' in sys.modules)"
    assert run("-c", loaded).stdout == "True False False\n"
    assert run("-c", loaded, env=os.environ | {"OMP_NUM_THREADS": "2"}).stdout == "False False False\n"
    assert run("-c", loaded, env=os.environ | {"LC_ALL": "C"}).stdout == "False False False\n"
    assert run("-c", "import os; print(len(os.listdir('/proc/self/task')))").stdout == "1\n"
    assert (
        len({run("-c", "import random, numpy; print(random.random(), numpy.random.rand())").stdout for _ in "ab"}) == 2
    )


def test_each_command_has_its_own_state() -> None:
    change = "import os, sys, logging, torch; os.environ['A'] = '1'; torch.a = 1; logging.basicConfig(level=10)"
    assert run("-c", change).returncode == 0
    seen = "import os, sys, logging, torch; print('A' in os.environ, hasattr(torch, 'a'), logging.root.handlers)"
    assert run("-c", seen).stdout == "False False []\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL])
@pytest.mark.parametrize("handled", [True, False])
def test_signals_reach_the_command(tmp_path: Path, number: int, handled: bool) -> None:
    handler = f"signal.signal({int(number)}, lambda *_: sys.exit(7)); " * (handled and number != signal.SIGKILL)
    code = f"import os, signal, sys, time; {handler}print(os.getpid(), flush=True); time.sleep(100)"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "preexec_fn": with_signals}
    with subprocess.Popen([PYTHON, "-c", code], **pipes) as process:
        pid = int(process.stdout.readline())
        assert pid != process.pid
        process.send_signal(number)
        assert process.wait(20) == (7 if handler else -number)
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_clients_that_go_leave_the_server_to_the_others() -> None:
    with socket.socket(socket.AF_UNIX) as connection:  # before it says what it wants
        connection.connect(str(Path(PYTHON).with_name("socket")))
    for pause in (0, 0.02, 0.05, 0.1):  # while the command starts, runs, ends
        with subprocess.Popen([PYTHON, "-c", ""]) as process:
            time.sleep(pause)
            process.kill()
    assert run("-c", "print(1)").stdout == "1\n"


OWNER = """
import os, signal, subprocess, sys
sys.path.insert(0, {folder!r})
from fork_server import ForkServer
server = ForkServer()
print(os.path.dirname(server.python), server._process.pid, flush=True)
if sys.argv[1] == "closed":
    server.close()
    sys.exit()
code = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
process = subprocess.Popen([server.python, "-c", code], stdout=subprocess.PIPE, text=True)
print(process.stdout.readline(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("end", ["closed", "killed"])
def test_nothing_is_left_once_the_test_run_ends(end: str) -> None:
    owner = run("-c", OWNER.format(folder=str(Path(fork_server.__file__).parent)), end, python=sys.executable)
    assert owner.returncode == (-signal.SIGKILL if end == "killed" else 0), owner.stderr
    folder, *pids = owner.stdout.split()
    assert len(pids) == 1 + (end == "killed")
    wait_until(lambda: not any(Path(path).exists() for path in (folder, *(f"/proc/{pid}" for pid in pids))))


def test_a_process_of_several_threads_is_not_forked() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    with pytest.raises(RuntimeError, match=r"cannot fork with \d+ threads: "):
        check_threads()
    stop.set()
    thread.join()
