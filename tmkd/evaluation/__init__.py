"""Evaluation: metrics, bootstrap intervals, comparison, charts, reports, several tasks. No training."""
