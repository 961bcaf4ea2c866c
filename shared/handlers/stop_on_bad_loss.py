from __future__ import annotations

from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys

from ..utils import DataError


class StopOnBadLoss:
    """Stop a training whose loss is NaN or infinite, before the step is taken, and name the cases of the batch.

    The network's weights stay as they were before the step, and so does the last checkpoint.

    Attach it to a `monai.engines.SupervisedTrainer`. A batch names its cases under the key `case`.

    Raises:
        DataError: from the iteration whose loss is not finite.
    """

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        loss = engine.state.output[CommonKeys.LOSS].detach()
        if loss.isfinite():
            return
        cases = engine.state.batch.get("case", ["unknown"])
        raise DataError(
            f"The loss became {loss.item()} in epoch {engine.state.epoch}, iteration {engine.state.iteration}, on the "
            f"cases {', '.join(sorted(set(cases)))}. Training stops before this step; the checkpoint of the last "
            "complete epoch is kept. Look at these cases, or resume with a lower learning rate or without mixed "
            "precision (--amp False)."
        )
