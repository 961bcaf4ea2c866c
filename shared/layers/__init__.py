"""Layers for networks of one's own. They need torch alone."""

from .fusestyle import FuseStyle, fuse_style, reference_indices

__all__ = ["FuseStyle", "fuse_style", "reference_indices"]
