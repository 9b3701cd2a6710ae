"""Directions: what z is in a trained tensor, drawn from addresses."""
