"""A rank of a distributed run that stands still is named by the others, and the run ends."""

from __future__ import annotations

import atexit
import json
import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

FIRST = 600.0  # seconds that the first step of a kind may take, at least, whose like has not been seen yet
GO_ON = "all end. A training goes on from its last checkpoint with --resume true."


class RankProgress:
    """How far this rank has come. There is one, `progress`, and it costs a microsecond to move."""

    def __init__(self) -> None:
        self.kind, self.place, self.what = "", (-1,), "at the start"
        self.waits, self.moves = True, 0
        self._began, self._longest = time.monotonic(), dict[str, float]()

    def beat(self) -> None:
        """Say that something within a step is done."""
        self.moves += 1

    def move(
        self,
        kind: str,
        place: tuple[int, ...],
        what: str,
        done: bool = False,
        waits: bool = False,
        began: float | None = None,
    ) -> None:
        """Say where this rank is.

        Args:
            kind: of the step; steps of a kind take about as long.
            place: in the order of the run; of ranks that wait for one another, the lowest is the one waited for.
            what: the same, for people.
            done: a step has ended, whose duration is that of its kind.
            waits: the ranks may wait for one another, or do what has no steps, for as long as it takes.
            began: when that step did, where there are several at a time (`time.monotonic`).
        """
        now = time.monotonic()
        if done and kind == self.kind and not self.waits:
            self._longest[kind] = max(now - (began or self._began), self._longest.get(kind, 0))
        if done or self.waits or kind != self.kind:
            self._began = now
        self.kind, self.place, self.what, self.waits = kind, place, what, waits
        self.moves += 1

    def status(self, patience: float) -> dict[str, Any]:
        """What the other ranks are told; `limit`: the seconds after which this one stands still."""
        longest = self._longest.get(self.kind)
        limit = max(patience, FIRST if longest is None else 3 * longest)
        return {"place": self.place, "what": self.what, "waits": self.waits, "moves": self.moves, "limit": limit}


@dataclass
class Seen:
    """A rank as this one sees it, with this machine's times at which it was heard of and at which it had moved."""

    status: Mapping[str, Any]
    heard: float
    moved: float


class RankWatch(threading.Thread):
    """Publishes this rank's progress through torchrun's store, and looks at that of the others.

    A thread, with a connection of its own: the main thread of a rank that is waited for, or that waits, is in C++.
    """

    def __init__(self, patience: float) -> None:
        super().__init__(daemon=True)
        self.patience = patience
        self.interval = min(10.0, max(0.5, patience / 10))
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=60), wait_for_workers=False)
        self.store = dist.PrefixStore(f"watch{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        self.ended, self.ticks = threading.Event(), 0
        self.seen: dict[int, Seen] = {}
        self.last = time.monotonic()

    def run(self) -> None:
        silent = 0.0
        while not self.ended.wait(self.interval):
            began = time.monotonic()
            try:
                self.tick()
                silent = 0.0
            except (RuntimeError, OSError):  # of the store, which may answer the next time; where it is gone, at once
                silent += time.monotonic() - began
                if silent >= self.patience:
                    self.leave(f"the process through which the ranks talk has not answered for {silent:.0f} s; {GO_ON}")
        with suppress(RuntimeError, OSError):
            self.publish(left=True)

    def tick(self) -> None:
        self.publish()
        now = time.monotonic()
        if now - self.last > 4 * self.interval:  # this process was stopped itself, perhaps all were
            self.seen.clear()
        self.last = now
        self.look(now)
        if still := standing_still(self.seen, now, max(self.patience, 5 * self.interval)):
            self.end(still, now)

    def publish(self, left: bool = False) -> None:
        self.ticks += 1
        status = progress.status(self.patience) | {"tick": self.ticks, "left": left}
        self.store.set(str(self.rank), json.dumps(status))

    def look(self, now: float) -> None:
        for rank in range(self.ranks):
            status = json.loads(self.store.get(str(rank))) if self.store.check([str(rank)]) else {"left": True}
            before = self.seen.pop(rank, None)
            if not status["left"]:
                heard = before and before.status["tick"] == status["tick"]
                moved = before and before.status["moves"] == status["moves"]
                self.seen[rank] = Seen(status, before.heard if heard else now, before.moved if moved else now)

    def end(self, still: list[int], now: float) -> None:
        """End this process, and with it, by torchrun, all others. The first rank that can says why."""
        if self.rank == min(set(self.seen) - set(still), default=min(still)):
            self.leave(self.message(still, now))
        time.sleep(3 * self.interval)
        self.leave()

    def leave(self, message: str | None = None) -> None:
        """End this process at once, with the reason if nobody else has given it."""
        if message:
            print(f"\nError: {message}", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        logging.shutdown()
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(1)  # the main thread may be in a collective, which nothing interrupts

    def message(self, still: list[int], now: float) -> str:
        first = self.seen[still[0]]
        who = f"rank {still[0]} of {self.ranks} has" if len(still) == 1 else f"ranks {still} of {self.ranks} have"
        silent = now - first.heard >= self.patience
        what = first.status["what"] + (", and its process does not answer" if silent else "")
        return f"{who} stood still for {now - (first.heard if silent else first.moved):.0f} s, {what}; {GO_ON}"

    def stop(self) -> None:
        """Tell the others that this rank has come to its end."""
        self.ended.set()
        self.join(10)


def standing_still(seen: Mapping[int, Seen], now: float, silence: float) -> list[int]:
    """The ranks that the others wait for in vain.

    Those that have not been heard of for so many seconds; else those that have come the least far and do not move. A
    rank that waits does not move either: it is meant only where another one has come further than it.
    """
    if silent := [rank for rank, one in seen.items() if now - one.heard >= silence]:
        return silent
    places = [one.status["place"] for one in seen.values()]
    return [
        rank
        for rank, one in seen.items()
        if one.status["place"] == min(places)
        and now - one.moved >= one.status["limit"]
        and (not one.status["waits"] or min(places) < max(places))
    ]


progress = RankProgress()
_watch: RankWatch | None = None


def start_watch(patience: float) -> None:
    """Watch the ranks of the process group, where there are several that torchrun has started.

    Args:
        patience: seconds that a rank may stand still; 0: for ever.
    """
    global _watch
    if patience > 0 and dist.is_torchelastic_launched() and dist.get_world_size() > 1:
        _watch = RankWatch(patience)
        _watch.start()
        atexit.register(stop_watch)


def stop_watch() -> None:
    """Stop watching: this rank has come to its end."""
    global _watch
    if _watch is not None:
        _watch.stop()
    _watch = None
