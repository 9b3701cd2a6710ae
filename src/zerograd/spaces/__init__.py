"""Spaces: a trained tensor, however it is stored."""
