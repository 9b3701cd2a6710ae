"""Weights from journals, and what `zerograd journal` says of them, on the runs of the tests of resuming."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.cli.runs import said
from tests.oracles.methods import Net, batch, same, stored
from tests.tune.straight import KINDS, records, weights
from zerograd import journal, optim
from zerograd.journal.header import recorded_memory
from zerograd.runs.journals import find_journal, read_journal
from zerograd.update import Skip, Step

pytestmark = [
    pytest.mark.full,
    pytest.mark.usefixtures("small_task"),
    pytest.mark.filterwarnings("ignore:bfloat16 precision rounds"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_is_made_again_from_its_journal_and_the_base(folder, straight, tmp_path, capsys, kind, threads):
    out = tmp_path / "again"
    assert "after 12 steps" in said(capsys, "replay", straight[kind], "--base", folder, "--out", out, "--threads", threads)
    torch.set_num_threads(1)
    name = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    assert (out / name).read_bytes() == (straight[kind] / "model" / name).read_bytes()
    assert not list(tmp_path.glob(".*partial"))
    if kind != "lora":
        AutoModelForCausalLM.from_pretrained(out)


@pytest.mark.parametrize("name", [name for name in optim.METHODS if not optim.method_of(name).takes_backward])
def test_what_a_header_says_of_any_method_makes_its_steps_again(name):
    net, again = Net(), Net()
    opt, twin = optim.METHODS[name](net, lr=0.05, seed=3), optim.METHODS[name](again)
    steps = []
    opt.record = steps.append
    for seed in range(3):
        opt.step(net.losses, batch(seed=seed))
    said = json.loads(json.dumps({"method": name, "options": opt.settings.saved(), "groups": 1, "seed": opt.draws.seed}))
    journal.replay(recorded_memory(said, twin.spaces, twin.group_of), steps)
    assert same(stored(opt), stored(twin))


def test_a_run_is_made_again_as_it_was_at_any_step(folder, straight, tmp_path, capsys):
    """Step 0 is the base; a journal cut at a step leads where the whole one does at that step."""
    run = straight["bfloat16, all"]
    seen = set()
    for at in (0, 5, 12):
        said(capsys, "replay", run, "--out", tmp_path / f"{at}", "--at", at)
        said(capsys, "journal", "cut", run, "--at", at, "--out", tmp_path / f"{at}.zgj")
        said(capsys, "replay", tmp_path / f"{at}.zgj", "--out", tmp_path / f"cut {at}")
        made = (tmp_path / f"{at}" / "model.safetensors").read_bytes()
        assert made == (tmp_path / f"cut {at}" / "model.safetensors").read_bytes()
        seen.add(made)
    assert len(seen) == 3
    base, first = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (folder, tmp_path / "0"))
    assert all(torch.equal(base[name], first[name]) for name in base)
    assert (tmp_path / "12" / "model.safetensors").read_bytes() == weights(run)


def test_another_base_is_refused_with_both_identities(folder, straight, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.model.embed_tokens.weight[3, 3] += 1
    model.save_pretrained(other)
    text = said(capsys, "replay", straight["per-example"], "--base", other, "--out", tmp_path / "out", code=2)
    assert f"is of base {folder} with identity " in text
    assert ", and this one has identity " in text
    assert not (tmp_path / "out").exists()


def test_what_happened_is_shown(straight, capsys):
    run = straight["mezo, back-offs"]
    text = said(capsys, "journal", "show", run)
    assert "12 steps of mezo" in text
    assert any(block in text for block in "▁█")
    step = next(record for record in records(run) if isinstance(record, Step))
    text = said(capsys, "journal", "show", run, "--step", "0")
    assert f"step 0: loss {step.loss:.6g}" in text
    assert f"1 coefficients: {float(step.coefficients[0]):.6g}" in text
    assert f"weights times {float(step.decays[0]):.9g}" in text
    assert "the journal has steps 0 .. 11" in said(capsys, "journal", "show", run, "--step", "12", code=2)


def test_damage_is_found_and_said(straight, tmp_path, capsys):
    path = tmp_path / "j.zgj"
    shutil.copy(find_journal(str(straight["per-example"])), path)
    assert "intact, 12 steps" in said(capsys, "journal", "verify", path)
    data = path.read_bytes()
    path.write_bytes(data[:-2])
    assert "the last record is incomplete" in said(capsys, "journal", "verify", path, code=1)
    path.write_bytes(data[:-200] + b"\0" + data[-199:])
    text = said(capsys, "journal", "verify", path, code=1)
    assert re.search(r"(differ|differs) from the ones? that (was|were) written, at byte", text)
    assert ", at byte" in said(capsys, "replay", path, "--out", tmp_path / "out", code=2)
    assert not (tmp_path / "out").exists()
    path.write_bytes(b"hello")
    assert "this is no journal" in said(capsys, "journal", "verify", path, code=1)
    assert "is not there; give a journal" in said(capsys, "journal", "verify", tmp_path / "none", code=2)


def test_runs_are_compared_to_where_they_part(straight, tmp_path, capsys):
    run, other = straight["per-example"], straight["bfloat16, all"]
    assert "all 12 steps are the same" in said(capsys, "journal", "diff", run, run)
    said(capsys, "journal", "cut", run, "--at", "7", "--out", tmp_path / "seven.zgj")
    text = said(capsys, "journal", "diff", run, tmp_path / "seven.zgj", code=1)
    assert "step 7" in text
    assert "has no such step" in text
    text = said(capsys, "journal", "diff", run, other, code=1)
    assert "tensors: " in text
    assert "step 0, " in text


def test_a_part_of_a_journal_is_one(straight, tmp_path, capsys):
    run = straight["per-example"]
    whole = records(run)
    for at in (0, 6, 12):
        assert f"{at} steps" in said(capsys, "journal", "cut", run, "--at", at, "--out", tmp_path / f"{at}")
        found = read_journal(tmp_path / f"{at}").records
        assert sum(isinstance(record, (Step, Skip)) for record in found) == at
        assert len(found) <= len(whole)
    assert "at is 13, and the journal has 12 steps" in said(
        capsys, "journal", "cut", run, "--at", "13", "--out", tmp_path / "x", code=2
    )
    assert "which exists; name another file" in said(capsys, "journal", "cut", run, "--at", "1", "--out", tmp_path / "6", code=2)
