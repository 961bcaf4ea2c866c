from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from errno import EDQUOT, ENOMEM, ENOSPC
from pathlib import Path
from types import TracebackType

logger = logging.getLogger(__name__)

# What gloo, NCCL and the store say where the process at the other end of a connection is gone.
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")

# What a system without memory makes torch, its data loaders and its threads say.
NO_MEMORY = ("can't allocate memory", "out of memory", "can't start new thread", "Cannot allocate memory")
WORKER_ENDED = ("DataLoader worker", "process in the process pool was terminated abruptly")
LESS_MEMORY = "Lower --num_workers, --batch_size or --sw_batch_size, as far as there are such, or choose --cache disk."
# What a GPU without memory makes torch say, and what takes less of it.
NO_GPU_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",  # the driver's words, where another process has it all
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED",  # cuDNN's, from 9 on
    "Cuda failure 2 'out of memory'",  # NCCL's
    "Cuda failure 'out of memory'",
)
LESS_GPU_MEMORY = ("batch_size", "num_samples", "sw_batch_size")
# A message of this project's in a worker's traceback, where what was raised first stands first.
WORKER_SAID = re.compile(
    r"^[\w.]*(?:DataError|DiskFullError): (.*?)(?=\n\n(?:The above exception|During handling)|\Z)",
    re.DOTALL | re.MULTILINE,
)
FIRST_RANK_WAIT = 10  # seconds; the first rank may still be importing
settings_at_hand: set[str] = set()  # of the configuration that runs, where it is known

NO_NUMBER = (  # behind what gave none
    "Its weights are damaged, or overflow in half precision: try another checkpoint, --amp_dtype bfloat16, or --amp "
    "false."
)
FREE_SPACE = (
    "Free space, or choose another folder, and run the command again; a training goes on from its last checkpoint with "
    "--resume true."
)


class DataError(ValueError):
    """Something the user gave cannot be used: a file, a folder, a setting.

    The message stands alone. It names the file or key, what was found, what was expected and what to do.
    """


class DiskFullError(DataError):
    """A file could not be written because its disk is full. What writes the next one would meet the same."""


def flag(name: str, value: object) -> bool:
    """The value of a switch. `--resume false` on a command line arrives as a string, which Python takes for true.

    Raises:
        DataError: for anything but true and false.
    """
    found = {"true": True, "false": False}.get(str(value).lower())
    if found is None:
        raise DataError(f"{name} is {value!r}, expected true or false.")
    return found


def fault_list(faults: Sequence[str], most: int = 50) -> str:
    """One fault a line, indented, to go behind a message; of very many the first, and how many more there are."""
    more = f"\n  (and {len(faults) - most} more)" if len(faults) > most else ""
    return "".join(f"\n  {fault}" for fault in faults[:most]) + more


def data_error_message(error: BaseException | None) -> str | None:
    """The message of the innermost `DataError` in a chain of exceptions, also of one that a worker process raised.

    None where there is no `DataError` in the chain.
    """
    # What `raise ... from None` has put another message in the place of is not looked at.
    for e in reversed(list(_chain(error, suppressed=False))):
        # A DataLoader's worker sends the traceback of the whole chain as the message of its last exception.
        found = WORKER_SAID.search(str(e)) if "Original Traceback" in str(e) else None
        if found or isinstance(e, DataError):
            return (found[1] if found else str(e)).strip()
    return None


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk, or a quota that is used up, is what an exception, or one that it stems from, tells of."""
    return any(
        isinstance(e, DiskFullError) or (isinstance(e, OSError) and e.errno in (ENOSPC, EDQUOT)) for e in _chain(error)
    )


def innermost(error: BaseException) -> BaseException:
    """The exception from which all others in a chain stem; one that was only being handled is no reason."""
    return list(_chain(error, handled=False))[-1]


def _chain(error: BaseException | None, handled: bool = True, suppressed: bool = True) -> Iterator[BaseException]:
    """An exception and those that it stems from, each once: `raise e from e` makes an exception its own cause.

    Args:
        error: the outermost.
        handled: also what was only being handled when it was raised,
        suppressed: even where `raise ... from` says not to look at that.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        context = error.__context__ if handled and (suppressed or not error.__suppress_context__) else None
        error = error.__cause__ or context


def no_memory_message(error: BaseException) -> str | None:
    """What to say where memory was not enough, also for a process that the system has ended for that; else None."""
    error = innermost(error)
    text = str(error)
    if any(sign in text for sign in NO_GPU_MEMORY):
        return _no_gpu_memory(text)
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == ENOMEM or any(s in text for s in NO_MEMORY):
        return f"memory is not enough ({last_line(error)}). {LESS_MEMORY}"
    if any(sign in text for sign in WORKER_ENDED) and "Caught" not in text:
        return f"a process that loads data has ended, probably for want of memory ({last_line(error)}). {LESS_MEMORY}"
    return None


def _no_gpu_memory(text: str) -> str:
    line = next(line for line in text.splitlines() if any(sign in line for sign in NO_GPU_MEMORY))
    found = ". ".join(line.split(". ")[:3]).rstrip(".")  # in torch's words, what it asked for and what there is
    settings = [name for name in LESS_GPU_MEMORY if name in settings_at_hand or not settings_at_hand]
    if "max_epochs" in settings_at_hand or not settings_at_hand:  # in inference they are those of the training
        settings += [name for name in ("roi_size", "tile_size") if name in settings_at_hand or not settings_at_hand]
    which = "" if settings_at_hand else ", as far as there are such"
    others = ", or choose --stitching_device cpu" if "stitching_device" in settings_at_hand else ""
    if "save_seconds" in settings_at_hand:
        others += ", or give --save_seconds 0, which keeps no copy of the training's state there"
    return (
        f"the GPU's memory is not enough ({found}). Lower {', '.join(f'--{name}' for name in settings)}{which}"
        f"{others}; --amp true takes less than false. nvidia-smi says whether another process is on the GPU."
    )


def worker_silent_message(error: BaseException) -> str | None:
    """What to say where a process that loads data has given nothing for `worker_timeout`; else None."""
    found = re.search(r"DataLoader timed out after (\d+)", str(innermost(error)))
    return found and (
        f"no process that loads data has given anything for {found[1]} s: they hang, their folder for temporary files "
        "(TMPDIR) is full, or the storage is very slow. See to that, or set --worker_timeout higher (0: wait for "
        "ever) or --num_workers 0, and run the command again; a training goes on from its last checkpoint with "
        "--resume true."
    )


def last_line(error: BaseException) -> str:
    """An exception as the last line of its traceback says it, of a data loader's worker that of its own traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if any("Original Traceback" in line for line in lines):
        return lines[-1]
    return f"{type(error).__name__}: {' '.join(map(str.strip, lines))[:1000]}" if lines else type(error).__name__


def unforeseen_message(error: BaseException) -> str:
    """The innermost exception of a chain, where it was raised, and how to see the whole of it."""
    error = innermost(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        said = f"{error.filename}: {error.strerror}"
    else:
        said = last_line(error)
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in place)
    return f"{said}{where}. With SHOW_TRACEBACK=1 in the environment, the whole traceback is shown."


def wait_for_first_rank(rank: int) -> None:
    """Where all ranks find the same error, let the first one say it: torchrun ends the others when it has.

    Returns at once in the first rank. In another one it returns after `FIRST_RANK_WAIT` seconds without that, and this
    one may say it: a rank that ended before the first is there would take it along, and the reason with it.
    """
    if rank:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun's, to be heeded without a word
        time.sleep(FIRST_RANK_WAIT)


def lost_rank_message(error: BaseException) -> str | None:
    """What to say where a rank of a distributed run stops only because another one has, or was told to stop.

    None where that is not the reason.
    """
    rank, ranks = os.environ.get("RANK"), int(os.environ.get("WORLD_SIZE", 1))
    if rank is None or ranks == 1:
        return None
    told = isinstance(error, KeyboardInterrupt) or any(
        isinstance(e, RuntimeError) and any(sign in str(e) for sign in LOST) for e in _chain(error)
    )
    return (
        f"rank {rank} of {ranks} stops, because another process of this run has ended or the run was told to stop; "
        "torchrun reports below which came first. A training goes on from its last checkpoint with --resume true."
        if told
        else None
    )


def show_errors_briefly() -> None:
    """Let the program end with one readable line, and not a traceback (set `SHOW_TRACEBACK=1` to see that too).

    * A `DataError`, however deep below MONAI's and ignite's own exceptions, is printed as its message alone; the exit
      status is 1.
    * A full disk, a lack of memory and a data loader's worker that gives nothing are named as the reason.
    * Of what nobody foresaw the innermost exception is printed, and where it was raised.
    * SIGTERM, as sent by a scheduler, is handled as an interrupt from the keyboard is; the exit status is 130. Neither
      is lost where it comes while an object is cleared away.
    * A rank of a distributed run says so where it stops because another one has ended.

    Call it in a program, for instance in the `initialize` section of a bundle, not in a library. In a thread of a
    program, as clients of federated learning are, nothing happens: what ends there is not the program.
    """
    if threading.current_thread() is not threading.main_thread():
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        message = data_error_message(error) or lost_rank_message(error)
        if isinstance(error, KeyboardInterrupt):
            message = lost_rank_message(error) or f"interrupted {error}".rstrip()
        if message is None and is_disk_full(error):  # of a file that another library writes
            message = f"the disk is full. {FREE_SPACE}"
        message = message or worker_silent_message(error) or no_memory_message(error) or unforeseen_message(error)
        if os.environ.get("SHOW_TRACEBACK") == "1":
            sys.__excepthook__(kind, error, trace)
        else:
            print(f"\nError: {message}", file=sys.stderr)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises there for a worker that is killed
        for worker in multiprocessing.active_children():  # one that hangs would be waited for at the end
            worker.kill()

    main_process = os.getpid()

    def interrupt(signum: int, frame: object) -> None:
        if os.getpid() != main_process:  # a data loader's worker, which has inherited this function
            os._exit(128 + signum)
        raise KeyboardInterrupt(signal.Signals(signum).name)

    def interrupt_again(unraisable: sys.UnraisableHookArgs) -> None:
        """Python drops what is raised while an object is cleared away, as a loader is, and the run would go on."""
        error = unraisable.exc_value
        if not isinstance(error, KeyboardInterrupt) or os.getpid() != main_process:
            sys.__unraisablehook__(unraisable)
            return
        told = signal.Signals[error.args[0]] if error.args else signal.SIGINT
        timer = threading.Timer(0.1, os.kill, (main_process, told))
        timer.daemon = True
        timer.start()

    sys.excepthook = hook
    sys.unraisablehook = interrupt_again
    signal.signal(signal.SIGTERM, interrupt)
