"""Rows: where they come from, how columns become prompts and answers, splits, tasks, order."""
