"""Commands in processes that need not import the third-party packages: a server has done so and forks for each.

`ForkServer().python` stands for `sys.executable`, in tests, in trials and for what the commands start themselves:

    python -m monai.bundle run ...      python scripts/demo.py ...      python -c "import shared" ...

It is a small program, the client: it hands its arguments, folder, environment, umask, cores, ignored signals, stdin,
stdout and stderr to the server. What the server forks runs the command as Python does: `sys.argv`, `sys.path`, the main
module; SystemExit, uncaught exceptions, atexit and the exit status are Python's own. The client passes signals on and
ends as the command has ended, by the same signal if by one; a command whose client was killed is killed. So
`subprocess` does all the rest.

In a Python of its own runs what a fork cannot do: options of Python other than -u, and environments that differ from
the server's in what is read when a program starts (`READ_AT_START`). Four differences remain: modules of others are
there before they are imported, what they print when imported is lost, the commands of a test run share the seed of
hashes, and -u writes line by line.

The server imports when the first command comes. It has one thread, since a fork has no other. It ends with the process
that made it, however that ends, and ends all that it forked.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

IMPORTED = (
    *("fire", "ignite", "itk", "jsonschema", "matplotlib.pyplot", "monai.bundle", "nibabel", "openslide", "PIL.Image"),
    *("safetensors.torch", "scipy", "tensorboard", "tiffslide", "torch", "torch._dynamo", "torch.onnx", "tqdm"),
    "torch.distributed.launcher.api",
    "torch.utils.tensorboard",
)
SET_IN_A_FORK = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "MALLOC_MMAP_THRESHOLD_")
READ_AT_START = re.compile(f"(?!({'|'.join(SET_IN_A_FORK)})$)(PYTHON|LC_|LANG|TZ$|LD_|MALLOC_|OMP_|MKL_|MPL)")
PREFIX = "fork_server_"  # of the name of a server's folder
M_MMAP_THRESHOLD = -3  # of malloc.h
PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class ForkServer:
    """A server, on Linux; elsewhere, where forking after imports is not safe, `python` is `sys.executable`.

    So it is in what a server has forked: its commands come from the same one.

    Attributes:
        python: the program to call as Python.
    """

    def __init__(self) -> None:
        self.python, self._folder = sys.executable, ""
        if sys.platform == "linux" and f"/{PREFIX}" not in sys.executable:
            self._start()

    def _start(self) -> None:
        import subprocess
        import tempfile

        self._folder = tempfile.mkdtemp(prefix=PREFIX, dir="/tmp")  # the path of a socket has at most 107 bytes
        self.python = f"{self._folder}/python"
        with open(self.python, "w", opener=lambda path, flags: os.open(path, flags, 0o700)) as file:
            place = os.path.dirname(os.path.abspath(__file__))
            file.write(f'#!/usr/bin/env -S "{sys.executable}" -IS\nimport sys\n\nsys.path.append({place!r})\n')
            file.write(f"from fork_server import call\n\ncall({self._folder!r}, sys.argv[1:])\n")
        with open(f"{self._folder}/environment", "w") as file:
            json.dump(read_at_start(), file)
        self._lifeline, theirs = socket.socketpair()
        with socket.socket(socket.AF_UNIX) as listener, theirs, open(f"{self._folder}/log", "w") as log:
            listener.bind(f"{self._folder}/socket")
            listener.listen(64)
            fds = (listener.fileno(), theirs.fileno())
            command = [sys.executable, __file__, self._folder, *map(str, fds)]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            environment.pop("PYTHONPATH", None)  # each command has its own
            self._process = subprocess.Popen(
                command,
                env=environment,
                pass_fds=fds,
                start_new_session=True,  # Ctrl-C reaches the clients, which pass it on
                **{"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log},
            )

    def close(self) -> None:
        """End the server and what it forked."""
        import shutil

        if self._folder:
            self._lifeline.shutdown(socket.SHUT_RDWR)  # a data loader's worker that is still there holds it open
            self._lifeline.close()
            self._process.wait()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = ""


def read_at_start() -> dict[str, str]:
    """The part of the environment that is read when a program starts."""
    return {name: value for name, value in os.environ.items() if READ_AT_START.match(name)}


def read(connection: socket.socket) -> bytes:
    """What has come; nothing when the other side is gone."""
    try:
        return connection.recv(64)
    except ConnectionError:
        return b""


# The client, which imports no more than it needs.


def call(folder: str, arguments: list[str]) -> NoReturn:
    """Let the server run `python ARGUMENTS`, and end as that ends."""
    with open(f"{folder}/environment") as file:
        same = json.load(file) == read_at_start()
    kept = arguments[arguments[:1] == ["-u"] :]
    forked = kept[:1] in (["-c"], ["-m"]) or (kept[:1] and kept[0].endswith(".py"))
    if not same or not forked:
        os.execv(sys.executable, [sys.executable, *arguments])
    command = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ), "umask": os.umask(0o77)}
    command["cores"] = [*os.sched_getaffinity(0)]
    command["ignored"] = [number for number in PASSED_ON if signal.getsignal(number) == signal.SIG_IGN]
    with socket.socket(socket.AF_UNIX) as connection, open(os.memfd_create("command"), "w") as file:
        json.dump(command, file)
        file.flush()
        connection.connect(f"{folder}/socket")
        for number in set(PASSED_ON).difference(command["ignored"]):
            signal.signal(number, lambda number, _: connection.send(bytes([number])))
        socket.send_fds(connection, [b"+"], [0, 1, 2, file.fileno()])
        status = read(connection)
    if not status:
        with open(f"{folder}/log") as log:
            sys.exit(f"The fork server has ended. {log.read()}")
    code = os.waitstatus_to_exitcode(int.from_bytes(status, "big"))
    if code < 0:
        if -code in PASSED_ON:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


# The server, and what it forks.


def check_threads() -> None:
    """Raise a `RuntimeError` with their names where this process has several threads: forks would lack all but one."""
    names = []
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/comm") as file:
            names.append(file.read().strip())
    if len(names) > 1:
        raise RuntimeError(f"cannot fork with {len(names)} threads: {', '.join(names)}")


def import_packages() -> None:
    import gc
    from importlib import import_module

    for name in IMPORTED:
        import_module(name)
    gc.collect()
    gc.freeze()  # or each fork would copy all objects when it ends


def ended() -> Iterator[tuple[int, int]]:
    """Process and status of each child that has ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        yield pid, status


def serve(listener: socket.socket, lifeline: socket.socket) -> list[int] | None:
    """Fork for each command that comes. Returns its files in the fork, and None in the server once the run is over."""
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, socket.socket] = {}  # the connection to the client of each process
    while True:
        ready = select([lifeline, listener, woken, *running.values()], [], [])[0]
        if lifeline in ready:
            return None
        for pid, connection in [item for item in running.items() if item[1] in ready]:
            numbers = read(connection)
            for number in numbers or [signal.SIGKILL]:
                os.kill(pid, number)
            if not numbers:
                running.pop(pid).close()
        if woken in ready:
            woken.recv(4096)
            for pid, status in ended():
                if pid in running:
                    with running.pop(pid) as connection, suppress(ConnectionError):  # the client may be gone
                        connection.send(status.to_bytes(4, "big"))
        if listener in ready:
            if "torch" not in sys.modules:
                import_packages()
            connection = listener.accept()[0]
            try:
                files = socket.recv_fds(connection, 1, 4)[1]
            except ConnectionError:
                files = []
            if not files:  # the client is gone
                connection.close()
                continue
            check_threads()
            pid = os.fork()
            if not pid:
                for end in (listener, lifeline, woken, wake, connection, *running.values()):
                    end.close()
                return files
            running[pid] = connection
            for file in files:
                os.close(file)


def take_over(files: list[int]) -> list[str]:
    """Make this process what its client is, and return the arguments of Python."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with open(files.pop()) as file:
        file.seek(0)  # the client shares the place in it
        command = json.load(file)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    # the objects stay: handlers of loggers hold them
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty() or command["arguments"][0] == "-u")
    for number in PASSED_ON:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in command["ignored"] else default)
    os.umask(command["umask"])
    os.sched_setaffinity(0, command["cores"])
    os.chdir(command["folder"])
    os.environ.clear()
    os.environ.update(command["environment"])
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    if threshold := os.environ.get("MALLOC_MMAP_THRESHOLD_"):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, int(threshold))
    tempfile.tempdir = None
    random.seed()
    sys.modules["numpy"].random.seed()
    sys.modules["torch"].default_generator.seed()
    return command["arguments"]


def run(arguments: list[str], python: str, path: list[str]) -> None:
    """Do what `python ARGUMENTS` does."""
    sys.executable, sys.orig_argv = python, [python, *arguments]
    arguments = arguments[arguments[0] == "-u" :]
    kind, *rest = arguments
    first = {"-m": os.getcwd(), "-c": ""}.get(kind, os.path.dirname(os.path.realpath(kind)))
    added = [os.path.abspath(folder) for folder in os.environ.get("PYTHONPATH", "").split(":") if folder]
    sys.path[:] = [first, *added, *path]
    sys.argv = [kind, *rest[1:]] if kind in ("-c", "-m") else arguments
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __annotations__={})
    if kind == "-m":
        runpy._run_module_as_main(rest[0])  # what Python itself calls
        return
    name, source = "<string>", rest[0] if kind == "-c" else ""
    if kind != "-c":
        name = main.__file__ = os.path.abspath(kind)
        try:
            with open(name, "rb") as file:
                source = file.read()
        except OSError as e:
            print(f"{python}: can't open file {name!r}: [Errno {e.errno}] {e.strerror}", file=sys.stderr)
            sys.exit(2)
    exec(compile(source, name, "exec", dont_inherit=True), main.__dict__)


def end_after(command: Callable[[], None]) -> NoReturn:
    """End as Python does after a command, but that the modules are not taken down: that copies what forks share."""
    status = interrupted = 0
    try:
        command()
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
        if status and not isinstance(e.code, int):
            print(e.code, file=sys.stderr)
    except BaseException as e:
        traceback = e.__traceback__
        while traceback and traceback.tb_frame.f_code.co_filename == __file__:
            traceback = traceback.tb_next
        sys.excepthook(type(e), e.with_traceback(traceback), traceback)
        status, interrupted = 1, type(e) is KeyboardInterrupt
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status & 0xFF)


if __name__ == "__main__":
    import atexit
    import builtins
    import ctypes
    import random
    import runpy
    import shutil
    import tempfile
    import threading
    from contextlib import suppress
    from select import select
    from types import ModuleType

    folder, path = sys.argv[1], sys.path[1:]
    files = serve(*(socket.socket(fileno=int(number)) for number in sys.argv[2:]))
    if files is None:
        shutil.rmtree(folder)
        os.killpg(0, signal.SIGKILL)
    else:
        arguments = take_over(files)
        end_after(lambda: run(arguments, f"{folder}/python", path))
