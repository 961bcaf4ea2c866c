from __future__ import annotations

from ignite.engine import Engine, Events


class EndWorkers:
    """End the persistent workers of an engine's `DataLoader` with the run.

    They would live, with what they have in memory, as long as the loader does: in a server or a notebook for hours. A
    second run starts them anew. After an error they go with the engine.
    """

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        loader = engine.state.dataloader
        if getattr(loader, "persistent_workers", False):
            loader._iterator = None  # whose end is theirs; torch has no public way
