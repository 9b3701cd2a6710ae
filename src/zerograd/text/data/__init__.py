"""Data: sources of rows, prompts and answers from columns, splits, tasks, and the order of batches."""
