"""YAML as people type it: numbers are numbers, words are words, and what is written is read back."""

from __future__ import annotations

import math

import pytest

from zerograd.machine import yaml_files
from zerograd.text.data import tasks

READ = {
    "1e-3": 1e-3, "1E5": 1e5, "2e4": 2e4, "-.5": -0.5, ".5e-2": 0.005, "3": 3, "-7": -7, "+7": 7, "0": 0, "1.": 1.0, "0x1F": 31,
    "true": True, "False": False, "null": None, "~": None, "": None, ".inf": math.inf, "-.inf": -math.inf,
    "yes": "yes", "No": "No", "on": "on", "OFF": "OFF", "y": "y", "1:30": "1:30", "010": "010", "2024-01-02": "2024-01-02",
    "1_000": "1_000", "1e": "1e", "e3": "e3", "=": "=", "'1e-3'": "1e-3", '"true"': "true",
}  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_a_plain_value_is_what_was_typed(text):
    value = yaml_files.load(text)
    assert value == READ[text]
    assert type(value) is type(READ[text])


@pytest.mark.parametrize("value", [*READ, *READ.values(), 1e-7, 1e22, [1e-3, "1e-3", True, "true", "no", None, "é"]])
def test_what_is_written_is_read_back(value):
    back = yaml_files.load(yaml_files.dump({"a": value}))["a"]
    assert back == value
    assert type(back) is type(value)


def test_a_task_of_yes_and_no_needs_no_quotes():
    spec = tasks.parse("prompt: '{{ text }}'\noptions: [No, Yes]\nlabel: answer\nlabels: [no, yes]\n", "mine")
    assert (spec.options, spec.labels) == (("No", "Yes"), ("no", "yes"))


@pytest.mark.parametrize("text", ["[" * 1200, "a: [", "9" * 5000, "a: !!python/object:os.system {}", "\x00"])
def test_what_is_no_yaml_is_one_kind_of_error(text):
    with pytest.raises(yaml_files.YAMLError):
        yaml_files.load(text)
