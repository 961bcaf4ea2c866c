from __future__ import annotations

from monai.data import CacheDataset
from monai.transforms import Compose, Identityd

from shared.data import SeededDataset
from shared.transforms import RandStylizedd


def test_the_copy_is_drawn_anew_in_each_epoch_and_alike_in_each_run() -> None:
    """Also of what is cached, and of an item without a copy."""
    data = [{"image": "original", "stylized": "copy"}] * 200 + [{"image": "original"}]

    def epoch(number: int, prob: float) -> list[str]:
        transform = Compose([Identityd("image"), RandStylizedd(prob=prob)])
        drawn = SeededDataset(CacheDataset(data, transform, progress=False), seed=3)
        items = [drawn[number, i] for i in range(len(data))]
        assert all(item.keys() == {"image"} for item in items)
        return [item["image"] for item in items]

    first, second = epoch(0, 0.3), epoch(1, 0.3)
    assert epoch(0, 0.3) == first
    assert first != second
    assert 40 < first.count("copy") < 80
    assert epoch(0, 1.0) == ["copy"] * 200 + ["original"]
    assert set(epoch(0, 0.0)) == {"original"}
