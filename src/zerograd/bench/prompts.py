"""The prompts that a study puts to a model: a task's own, or the text alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from zerograd.text.data.tasks import TaskSpec
from zerograd.text.data.templates import Template

PROMPTS = ("aligned", "plain")
"""aligned: the task's own template. plain: its columns alone, a line each, without a word of what is asked; options unchanged."""


def varied(spec: TaskSpec, prompt: str, rows: Mapping[str, int]) -> TaskSpec:
    """A task with a prompt of `PROMPTS` and at most so many rows a split.

    Raises ValueError for a task that has no accuracy, or whose prompt is a conversation.
    """
    if spec.kind == "answer":
        raise ValueError(f"task {spec.name} has free answers; a study compares accuracy, so that its tasks need options")
    if prompt == "plain":
        spec = dataclasses.replace(spec, prompt=_plain(spec))
    return dataclasses.replace(spec, metric="", rows=dict(spec.rows) | dict(rows))


def _plain(spec: TaskSpec) -> str:
    names = Template(spec.prompt, "prompt").names - {"mask"}
    written = {name: name if name.isidentifier() else f"row[{name!r}]" for name in names}
    return "\n".join(f"{{{{ {written[name]} | trim }}}}" for name in sorted(names, key=spec.prompt.index))
