from __future__ import annotations

import logging
import os
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine

from ..utils import DataError, flag, lock_folder, read_json_object, writable_folder
from .run_folders import FILES, checkpoint_part
from .training_checkpoint import TrainingCheckpoint

logger = logging.getLogger(__name__)

BEFORE = "before"  # the folder for weights that were there before a client's first round


class FederatedCheckpoint(TrainingCheckpoint):
    """The files of a client of federated learning, whose training goes on round by round from the server's weights.

    They are those of `TrainingCheckpoint`, with these differences:

    * the best epoch, and with it `model.pt`, is that of the round, in which the weights are the server's and what the
      client has made of them; before its first validation there is none;
    * weights that another training, or a package, has left in the folder go to `before/`; those of an earlier client
      are replaced;
    * what the server does not know, the state of the optimizer, the schedule and the re-weighting rule, goes on from
      round to round as long as the process lives. Nothing is resumed.

    Args:
        ckpt_dir: folder of the files.
        resume: has to be false.
        overwrite: of no effect.
        kwargs: as for `TrainingCheckpoint`.

    Raises:
        DataError: for another `resume`; in the first round, when weights would have to go where others are, or another
            run writes to the folders.
    """

    def __init__(
        self, ckpt_dir: str | os.PathLike, resume: bool | str = False, overwrite: bool = False, **kwargs: Any
    ) -> None:
        if resume == "best" or flag("resume", resume):
            raise DataError(
                f"resume is {resume}: a round of federated training starts from the server's weights. Leave it out."
            )
        super().__init__(ckpt_dir, overwrite=True, **kwargs)
        self.record["federated"] = True
        self._begun = False

    def _start(self, engine: Engine) -> None:
        is_first, self._begun = not self._begun, True
        if idist.get_rank() == 0:
            for folder, option in ((self.ckpt_dir, "ckpt_dir"), (self.output_dir, "output_dir")):
                if folder:
                    lock_folder(writable_folder(folder), option)  # until the end of the round
            if is_first:
                self._set_aside()
        self.evaluator.state.best_metric, self.evaluator.state.best_metric_epoch = -1, -1
        if is_first:
            super()._start(engine)
        elif idist.get_rank() == 0:
            self._clear()

    def _set_aside(self) -> None:
        """Keep weights that no client has made: a package's, or those of a training of their own."""
        path = self.ckpt_dir / "model.json"
        if path.is_file():
            record = read_json_object(path, "the record of weights", "")
        else:
            record = checkpoint_part(self.last, "record")
        found = [name for name in (*FILES, *self.companions) if (self.ckpt_dir / name).is_file()]
        if not found or record.get("federated"):
            return
        before = self.ckpt_dir / BEFORE
        if before.exists():
            raise DataError(
                f"{self.ckpt_dir / found[0]}: these weights would go to {before}, which holds others. Move one of them "
                "away, or choose another ckpt_dir."
            )
        before.mkdir()
        for name in found:
            (self.ckpt_dir / name).rename(before / name)
        logger.info("%s: what was there before goes to %s", self.ckpt_dir, before)
