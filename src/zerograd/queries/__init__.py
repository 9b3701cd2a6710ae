"""Queries: which perturbed copies a step scores, and which coefficients their scores give."""

from zerograd.queries.plan import Plan, Variant
from zerograd.queries.query import NoQuery, Query, Scores

__all__ = ["NoQuery", "Plan", "Query", "Scores", "Variant"]
