"""Finished runs: reading a folder, evaluating, predicting, replaying a journal."""
