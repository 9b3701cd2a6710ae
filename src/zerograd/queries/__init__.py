"""Queries: which perturbed copies a step scores, and which coefficients their scores give."""
