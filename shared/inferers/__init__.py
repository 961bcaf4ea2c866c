"""From a network's output to a result on the grid of the input."""

from .restore import axis_maps, restore_label_map

__all__ = ["axis_maps", "restore_label_map"]
