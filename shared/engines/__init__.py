"""Engines that run a network over cases."""

from .case_evaluator import CaseEvaluator, FaultTolerantDataset, collate_readable

__all__ = ["CaseEvaluator", "FaultTolerantDataset", "collate_readable"]
