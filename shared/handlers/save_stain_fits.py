from __future__ import annotations

import os
from pathlib import Path

import ignite.distributed as idist
from ignite.engine import Engine, Events

from ..transforms import NormalizeStaind
from ..utils import write_json

NAME = "stain_fits.json"


class SaveStainFits:
    """Keep what slides were fitted to, for their stains to be normalised: `stain_fits.json`, see its `content`.

    Where stains are left as they are, the file of an earlier run is removed. Attach it to a trainer or evaluator; rank
    0 writes at the start of the run.

    Args:
        transform: that normalises them.
        output_dir: folder of the file.
    """

    def __init__(self, transform: NormalizeStaind, output_dir: str | os.PathLike) -> None:
        self.transform = transform
        self.output_dir = Path(output_dir)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._write)

    def _write(self, engine: Engine) -> None:
        if idist.get_rank() > 0:
            return
        file = self.output_dir / NAME
        if self.transform.normalizer is None:
            file.unlink(missing_ok=True)
        else:
            write_json(file, self.transform.content)
