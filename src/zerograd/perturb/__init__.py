"""Perturbed evaluation: directions, plans, and the forward that intercepts operations on parameters."""
