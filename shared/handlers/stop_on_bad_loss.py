from __future__ import annotations

import math

from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys

from ..utils import DataError


class StopOnBadLoss:
    """Stop a training whose loss is NaN or infinite, before the step is taken, and name the cases of the batch.

    The network's weights stay as they were before the step, and so does the last checkpoint. The loss is a number
    in `state.output["loss_value"]` for other handlers: each reading of a GPU's tensor would wait for the GPU anew.

    Attach it to a `monai.engines.SupervisedTrainer`. A batch names its cases under the key `case`.

    Raises:
        DataError: from the iteration whose loss is not finite.
    """

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        loss = engine.state.output["loss_value"] = engine.state.output[CommonKeys.LOSS].item()
        if math.isfinite(loss):
            return
        cases = engine.state.batch.get("case", ["unknown"])
        raise DataError(
            f"The loss became {loss} in epoch {engine.state.epoch}, iteration {engine.state.iteration}, on the "
            f"cases {', '.join(sorted(set(cases)))}. Training stops before this step; the checkpoint of the last "
            "complete epoch is kept. Look at these cases, or resume with a lower learning rate or, in mixed precision, "
            "with --amp_dtype bfloat16, whose range is that of float32, or --amp false."
        )
