from __future__ import annotations

import torch
from ignite.engine import Engine, Events


class ScaleGradients:
    """Leave the gradients of a mixed-precision training as they are where its type has the range of a float32.

    MONAI's trainer scales the loss in mixed precision of any type, as float16 needs it. Attach it to the trainer before
    what saves and loads its scaler.

    Args:
        amp_dtype: `"float16"`, or another, in which nothing is scaled.
    """

    def __init__(self, amp_dtype: str) -> None:
        self.amp_dtype = amp_dtype

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        if engine.amp and self.amp_dtype != "float16":
            engine.scaler = torch.amp.GradScaler("cuda", enabled=False)
