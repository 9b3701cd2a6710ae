"""The prompts of a study: a task's own template, or its columns alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from zerograd.text.data.tasks import TaskSpec
from zerograd.text.data.templates import Template, reference

PROMPTS = ("aligned", "plain")
"""aligned: the task's own template. plain: its columns alone, one per line, without instructions; the options stay."""


def with_prompt(spec: TaskSpec, prompt: str, rows: Mapping[str, int]) -> TaskSpec:
    """A task with a prompt of `PROMPTS`. rows: the most rows of each split.

    Raises ValueError for a task without options, which has no accuracy.
    """
    if spec.kind == "answer":
        raise ValueError(f"task {spec.name} has free answers; a study compares accuracy, so its tasks need options")
    if prompt == "plain":
        spec = dataclasses.replace(spec, prompt=_plain(spec))
    return dataclasses.replace(spec, metric="", rows=dict(spec.rows) | dict(rows))


def _plain(spec: TaskSpec) -> str:
    names = Template(spec.prompt, "prompt").names - {"mask"}
    return "\n".join(f"{{{{ {reference(name)} | trim }}}}" for name in sorted(names, key=spec.prompt.index))
