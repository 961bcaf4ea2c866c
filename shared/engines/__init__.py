"""Engines that run a network over cases."""

from .case_evaluator import CaseEvaluator, FaultTolerantDataset

__all__ = ["CaseEvaluator", "FaultTolerantDataset"]
