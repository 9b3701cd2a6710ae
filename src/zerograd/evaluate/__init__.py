"""Evaluation: how a plan is scored without a weight being written."""
