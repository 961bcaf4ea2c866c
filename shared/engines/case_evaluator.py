from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from ignite.handlers import ProgressBar
from monai.data import Dataset
from monai.engines import IterationEvents, SupervisedEvaluator
from monai.engines.utils import engine_apply_transform
from monai.utils import CommonKeys

from ..utils import DataError, data_error_message, fault_list, flag, gather_list, is_disk_full
from ..utils.errors import innermost, no_memory_message, worker_silent_message

logger = logging.getLogger(__name__)


def _reason(error: BaseException, file: str = "") -> str:
    """The message of the `DataError` at the bottom of it, or the error at the bottom with its type.

    A lack of memory is that for the `file`.
    """
    message = data_error_message(error) or worker_silent_message(error)
    if message is None and (lack := no_memory_message(error)):
        message = f"{file}: {lack}" if file else lack
    if message is None:
        error = innermost(error)
        message = f"{type(error).__name__}: {error}"
    return message


def _file_of(batch: Mapping[str, Any]) -> str:
    names = getattr(batch.get(CommonKeys.IMAGE), "meta", {}).get("filename_or_obj", "")
    return names if isinstance(names, str) else names[0]


def _all_failures(failures: Sequence[tuple[str, str]], cases: int) -> DataError:
    if cases == 1:
        return DataError(failures[0][1])
    faults = fault_list([f"{case}: {reason}" for case, reason in failures])
    return DataError(f"{len(failures)} of {cases} cases failed:{faults}")


class FaultTolerantDataset(Dataset):
    """A data set that gives `{"failure": the reason, "case": its name}` in place of a case that cannot be loaded.

    Args:
        data: one dict a case, each with its `case`, see `list_inputs`; one with a `failure` is not loaded.
        transform: the preprocessing.
    """

    def __getitem__(self, index: int) -> Any:
        if "failure" in self.data[index]:
            return {key: self.data[index][key] for key in ("failure", "case")}
        try:
            return super().__getitem__(index)
        except Exception as error:  # whatever it is, the other cases go on; the evaluator reports it
            logger.debug("%s could not be loaded", self.data[index]["case"], exc_info=True)
            return {"failure": _reason(error), "case": self.data[index]["case"]}


def prepare_region(
    batch: Mapping[str, Any], device: torch.device | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Any, None]:
    """The one region of a batch, for `RegionInferer`, which brings tiles of it to the network's device; no target."""
    (region,) = batch[CommonKeys.IMAGE]
    return region, None


class InferenceEvaluator(SupervisedEvaluator):
    """An evaluator over a rank's share of the inputs, which may be none.

    The handlers of the start and of the end of the run, where the ranks put together what they have found, are called
    all the same.
    """

    def run(self, global_epoch: int = 1) -> None:
        if self.state.epoch_length == 0:
            self.state.dataloader = self.data_loader
            self.fire_event(Events.STARTED)
            self.fire_event(Events.COMPLETED)
        else:
            super().run(global_epoch)


class ReadAhead:
    """What a loader gives, each item read in a thread while the one before it is worked on. Its errors come through.

    (Those of a `monai.data.ThreadBuffer` end the iteration without a word.) For loaders without worker processes: with
    them the next items are read anyway, and a thread that waits for one that was killed would keep the program from
    its end until the loader's timeout.
    """

    def __init__(self, loader: Iterable) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        with ThreadPoolExecutor(1, "read") as pool:
            items, end = iter(self.loader), object()
            coming = pool.submit(next, items, end)
            while (item := coming.result()) is not end:
                coming = pool.submit(next, items, end)
                yield item
                del item


class CaseEvaluator(InferenceEvaluator):
    """An evaluator that takes the cases one at a time and, when one fails, goes on with the others.

    A failure in loading (from a `FaultTolerantDataset`), in the network or in the postprocessing is logged and kept in
    `failures`; `state.batch` and `state.output` of that iteration are empty lists. When all other cases are done, and
    the handlers of the end of the run have written their reports, `run` raises one error that lists the failures. In a
    distributed run, where each rank has a share of the cases, it is raised on rank 0, with those of all ranks. A full
    disk ends the run at once.

    Args:
        device: where the network is.
        val_data_loader: one case a batch. Of regions, by `collate_regions`, with `prepare_batch=prepare_region`, a
            `RegionInferer`, and `decollate=False`.
        network: the network.
        keep_going: False stops at the first failure.
        progress: show a progress bar over the cases, on rank 0.
        overlap_cases: read the next case and do the postprocessing of the last one, which saves it, in threads while
            the network has its own. Three cases are then in memory; with worker processes, which do the reading, as
            many as they read ahead in place of the one. Metrics and handlers do not get to see what the postprocessing
            makes.
        kwargs: as for `SupervisedEvaluator`.

    Attributes:
        failures: (case, reason) of each case that failed on this rank.

    Raises:
        DataError: from `run`, when a case failed.
    """

    def __init__(
        self,
        device: torch.device,
        val_data_loader: Iterable,
        network: torch.nn.Module,
        keep_going: bool = True,
        progress: bool = True,
        overlap_cases: bool = False,
        **kwargs: Any,
    ) -> None:
        self.keep_going = flag("keep_going", keep_going)
        self.failures: list[tuple[str, str]] = []
        self._saver = ThreadPoolExecutor(1, "save") if flag("overlap_cases", overlap_cases) else None
        self._saving: tuple[str, str, Future] | None = None  # case, its file, and what becomes of it
        self._fatal: Exception | None = None  # the failure that ends the run
        if self._saver:
            kwargs["epoch_length"] = len(val_data_loader)
            if not getattr(val_data_loader, "num_workers", 0):
                val_data_loader = ReadAhead(val_data_loader)
        super().__init__(device, val_data_loader, network, **kwargs)
        if self._saver:
            self.add_event_handler(Events.EPOCH_COMPLETED, lambda _: self._saved())
        if progress and idist.get_rank() == 0:
            ProgressBar(persist=True, desc="cases").attach(self)

    def run(self, global_epoch: int = 1) -> None:
        self.failures = []
        try:
            super().run(global_epoch)
        except Exception as error:
            self._saved()  # where the loader has ended the run
            # With no case left, a metric or report at the end has nothing to work on: the failures are the reason.
            if not self.keep_going or not self.failures or len(self.failures) < self.state.epoch_length:
                raise
            raise _all_failures(self.failures, self.state.epoch_length) from error
        failures, cases = gather_list(self.failures), sum(gather_list([self.state.epoch_length]))
        if failures:
            raise _all_failures(failures, cases)

    def _register_postprocessing(self, posttrans: Callable) -> None:
        if self._saver is None:
            super()._register_postprocessing(posttrans)
            return

        @self.on(IterationEvents.MODEL_COMPLETED)
        def _hand_over(engine: CaseEvaluator) -> None:
            self._saved()
            ((batch, output),) = zip(engine.state.batch, engine.state.output, strict=True)

            def save() -> None:  # gives nothing: what a case takes is free as soon as it is saved
                engine_apply_transform(batch, output, posttrans)

            self._saving = (str(batch["case"]), _file_of(batch), self._saver.submit(save))
            engine.state.batch, engine.state.output = [], []

    def _saved(self) -> None:
        """Wait for the case that is being saved."""
        if self._saving is None:
            return
        (case, file, coming), self._saving = self._saving, None
        try:
            coming.result()
        except Exception as error:
            self._failed(case, error, file)

    def _failed(self, case: str, error: Exception, file: str) -> None:
        """Tell of a failure and keep it, or raise it where the others are not to go on."""
        if error is self._fatal:  # of the case before, which this one has waited for
            raise error
        reason = _reason(error, file)
        logger.error("%s failed: %s", case, reason)
        logger.debug("traceback of %s", case, exc_info=error)
        if not self.keep_going or is_disk_full(error):
            self._fatal = error
            raise error
        self.failures.append((case, reason))

    def _iteration(self, engine: CaseEvaluator, batchdata: dict[str, Any]) -> Any:
        case = str(batchdata["case"][0]) if "case" in batchdata else f"case {engine.state.iteration}"
        try:
            if "failure" in batchdata:
                raise DataError(batchdata["failure"][0])
            self._note_padding(case, batchdata[CommonKeys.IMAGE])
            return super()._iteration(engine, batchdata)
        except Exception as error:  # whatever it is, the other cases go on
            self._saved()  # the failure of the case before comes first
            self._failed(case, error, _file_of(batchdata))
            # the batch and output of a failed case hold gigabytes that the next one needs
            engine.state.batch = []
            return []

    def _note_padding(self, case: str, image: torch.Tensor) -> None:
        """Note a volume that the window is larger than."""
        window = getattr(self.inferer, "roi_size", None)
        if not isinstance(window, (list, tuple)):
            return
        shape = image.shape[2:]
        if any(n < w for n, w in zip(shape, window, strict=True)):
            logger.info(
                "%s: %s voxels after preprocessing, smaller than the window of %s: padded, and the result cropped back",
                case,
                " × ".join(map(str, shape)),
                " × ".join(map(str, window)),
            )
