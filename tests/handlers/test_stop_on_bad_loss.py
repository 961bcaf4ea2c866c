from __future__ import annotations

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import nn

from shared.handlers import StopOnBadLoss
from shared.utils import DataError


def trainer(values: list[float], network: nn.Module) -> SupervisedTrainer:
    data = [{"image": torch.full((1,), v), "label": torch.zeros(1), "case": f"case_{i}"} for i, v in enumerate(values)]
    return SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=DataLoader(Dataset(data), batch_size=2),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=nn.MSELoss(),
        train_handlers=[StopOnBadLoss()],
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_it_stops_before_the_step_and_names_the_cases(bad: float) -> None:
    network = nn.Linear(1, 1)
    with pytest.raises(DataError, match=r"epoch 1, iteration 2, on the cases case_2, case_3\."):
        trainer([1.0, 2.0, 3.0, bad, 5.0, 6.0], network).run()
    assert all(parameter.isfinite().all() for parameter in network.parameters())


def test_a_finite_loss_goes_on_and_is_a_number_for_others() -> None:
    engine, seen = trainer([1.0, 2.0, 3.0, 4.0], nn.Linear(1, 1)), []
    engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, lambda engine: seen.append(dict(engine.state.output)))
    engine.run()
    assert engine.state.iteration == 2
    assert [output["loss_value"] for output in seen] == [output["loss"].item() for output in seen]
