"""A run as one file: what it makes, what is in it, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import zerograd as zg
from tests.cli.runs import said
from tests.tune.straight import KINDS, settings
from zerograd.journal import Restore, Writer
from zerograd.runs.journals import read_journal
from zerograd.runs.lora import write_lora
from zerograd.runs.ship import open_run_or_file
from zerograd.text.data import splits, tasks
from zerograd.text.data.templates import Template
from zerograd.tune import tune
from zerograd.update import Skip, Step

pytestmark = [
    pytest.mark.full,
    pytest.mark.usefixtures("small_task"),
    pytest.mark.filterwarnings("ignore:bfloat16 precision rounds"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_shipped_run_is_the_tuned_model_beside_its_base(folder, straight, tmp_path, capsys, kind):
    file, moved = tmp_path / "tuned.zg", tmp_path / "elsewhere"
    assert f"{file}: " in said(capsys, "ship", straight[kind], "--out", file)
    shutil.copytree(folder, moved)
    loaded = zg.load(str(file), base=str(moved))
    made = loaded.model.state_dict()
    if kind == "lora":
        from peft import PeftModel

        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        expected = PeftModel.from_pretrained(base, straight[kind] / "model").state_dict()
    else:
        expected = AutoModelForCausalLM.from_pretrained(straight[kind] / "model").state_dict()
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[name], expected[name]) for name in made)


def test_what_is_shipped_has_the_steps_that_count_and_no_path(folder, straight, tmp_path, capsys):
    run = straight["mezo, back-offs"]
    said(capsys, "ship", run, "--out", tmp_path / "tuned.zg")
    told = read_journal(tmp_path / "tuned.zg")
    assert not any(isinstance(record, Restore) for record in told.records)
    assert any(isinstance(record, Skip) for record in told.records), "steps that were gone back on"
    data = (tmp_path / "tuned.zg").read_bytes()
    for word in (str(folder), str(run), "reviews", "/tmp"):
        assert word.encode() not in data
    assert len(data) < (run / "journal.zgj").stat().st_size
    assert told.header["base"]["identity"] == read_journal(run / "journal.zgj").header["base"]["identity"]


def test_a_shipped_run_is_evaluated_and_asked(folder, straight, tmp_path, capsys):
    run, file = straight["per-example"], tmp_path / "tuned.zg"
    said(capsys, "ship", run, "--out", file)
    found = splits.load("sentiment-movies")
    rows, others = tmp_path / "rows.jsonl", tmp_path / "others.jsonl"
    for path, some in ((rows, found.test[:20]), (others, found.train[:20])):
        path.write_text("".join(json.dumps({**example.row, "label": example.label}) + "\n" for example in some))
    for name in (["--model", file, "--base", folder], [run]):
        text = said(capsys, "eval", *name, "--test", rows, "--data", others, "--json")
        result = json.loads((run / "result.json").read_text())
        assert f'"value": {result["value_after"]}' in text
    said(capsys, "predict", "--model", file, "--base", folder, "--data", rows, "--out", tmp_path / "a.jsonl")
    said(capsys, "predict", run, "--data", rows, "--out", tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert "give one of them" in said(capsys, "predict", "--data", rows, "--out", tmp_path / "c.jsonl", code=2)


def test_what_cannot_be_shipped_or_loaded_is_one_line(folder, straight, tmp_path, capsys):
    file = tmp_path / "tuned.zg"
    said(capsys, "ship", straight["per-example"], "--out", file)
    assert "which exists; name another file" in said(capsys, "ship", straight["per-example"], "--out", file, code=2)
    assert "run 'nowhere' is not there" in said(capsys, "ship", "nowhere", "--out", tmp_path / "x.zg", code=2)
    prefix = tmp_path / "prefix"
    tune(settings(folder, prefix, scheme="prefix", steps=2, evals=0))
    assert f"share {prefix}/model instead" in said(capsys, "ship", prefix, "--out", tmp_path / "x.zg", code=2)
    data = file.read_bytes()
    for at in range(0, len(data), 97):
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(ValueError, match=r"at byte|is no journal|has format|has layout"):
            zg.load(str(file), base=str(folder))
    file.write_bytes(data)
    (tmp_path / "r.jsonl").write_text('{"text": "fine"}\n')
    with pytest.raises(ValueError, match="has no settings in its header"):
        open_run_or_file(str(forged(file, settings=None)))
    asked = ["--base", straight["per-example"] / "model", "--data", tmp_path / "r.jsonl", "--out", tmp_path / "a.csv"]
    assert "is of base" in said(capsys, "predict", file, *asked, code=2)


def test_a_full_run_as_lora_says_what_it_lacks(folder, straight, tmp_path, capsys):
    """At the full rank of its layers the adapter lacks nothing but the norms; at a lower one more."""
    from peft import PeftModel

    run, lacking = straight["per-example"], []
    for rank in (16, 2):
        text = said(capsys, "replay", run, "--out", tmp_path / str(rank), "--rank", rank)
        assert f"a LoRA adapter of rank {rank}, which lacks" in text
        lacking.append(float(text.split("lacks ")[1].split()[0]))
    assert lacking[0] < lacking[1] < 100
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tuned = zg.load(str(run)).model.float()
    merged = PeftModel.from_pretrained(base, tmp_path / "16").merge_and_unload()
    name = "model.layers.2.mlp.down_proj.weight"
    torch.testing.assert_close(merged.state_dict()[name], tuned.state_dict()[name], atol=2e-3, rtol=2e-2)
    assert "trained an adapter (lora); leave it out" in said(
        capsys, "replay", straight["lora"], "--out", tmp_path / "x", "--rank", "2", code=2
    )


def forged(file, **fields):
    """A shipped file with other fields in its header, and right checksums."""
    told = read_journal(file)
    out = file.with_name("forged.zg")
    out.unlink(missing_ok=True)
    writer = Writer.create(out, {**told.header, **fields})
    for record in told.records:
        writer.add(record)
    writer.close()
    return out


def test_a_file_from_elsewhere_runs_nothing_and_asks_for_no_memory(folder, straight, tmp_path, capsys):
    """Functions that it names are not called, patterns are not searched for, sizes are bounded, and settings write nothing."""
    file = tmp_path / "tuned.zg"
    said(capsys, "ship", straight["per-example"], "--out", file)
    told = read_journal(file)
    before = set(tmp_path.iterdir())
    task = str(told.header["task"]) + "metric: subprocess:call\n"
    run = open_run_or_file(str(forged(file, task=task)), str(folder))
    assert (run.spec.metric, run.result["metric"]) == ("accuracy", "accuracy")
    common = dict(told.header["settings"])
    hang = common | {"scheme": "pattern", "pattern": "(a|a?)+$" * 9}
    assert zg.load(str(forged(file, settings=hang)), base=str(folder)).model is not None
    for wrong in (common | {"scheme": "lora", "lora_rank": 1 << 40}, common | {"scheme": "prompt", "virtual_tokens": 1 << 40}):
        with pytest.raises(ValueError, match="more than 4,096"):
            zg.load(str(forged(file, settings=wrong)), base=str(folder))
    for options in (
        {"distribution": "rademacher", "rank": 1 << 40},
        {"distribution": "x", "rank": 1},
        {"rank": "1"},
        {"x": 1},
        None,
    ):
        with pytest.raises(ValueError, match=r"options|rank|distribution"):
            zg.load(str(forged(file, options=options)), base=str(folder))
    for settings_ in (None, {"out": 3}, {"nonsense": 1}):
        with pytest.raises(ValueError, match=r"settings|out is|nonsense"):
            zg.load(str(forged(file, settings=settings_)), base=str(folder))
    (tmp_path / "forged.zg").unlink()
    assert set(tmp_path.iterdir()) == before


def test_a_file_that_was_cut_anywhere_is_refused(folder, straight, tmp_path, capsys):
    """Within a record, between two, and before the note at the end."""
    file = tmp_path / "tuned.zg"
    said(capsys, "ship", straight["per-example"], "--out", file)
    data = file.read_bytes()
    for length in range(len(data) - 900, len(data)):
        file.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"is incomplete: it has \d+ of its \d+ steps; fetch it again|no journal|header"):
            read_journal(file)


def test_a_file_says_neither_what_is_read_nor_where_its_base_is(folder, straight, tmp_path, capsys):
    file, secret = tmp_path / "tuned.zg", tmp_path / "secret.jsonl"
    secret.write_text('{"text": "mine", "label": 0}\n')
    said(capsys, "ship", straight["per-example"], "--out", file)
    told = read_journal(file)
    for fields in (
        {"settings": told.header["settings"] | {"data": [str(secret)], "dev": str(secret)}},
        {"task": str(told.header["task"]) + f"data: {secret}\n"},
    ):
        text = said(capsys, "eval", "--model", forged(file, **fields), "--base", folder, code=2)
        assert "give --data" in text
        assert "secret" not in text
    assert "give its path with --base" in said(capsys, "predict", file, "--data", secret, "--out", tmp_path / "a.csv", code=2)
    step = told.steps[0]
    wide = Step(0, 0.5, np.zeros(250_000, np.float32), step.lrs, step.radii)
    path = tmp_path / "wide.zg"
    writer = Writer.create(path, {**told.header, "options": {"distribution": "rademacher", "rank": 4096}, "shipped": 1})
    writer.add(wide)
    writer.note({"result": {}})
    writer.close()
    with pytest.raises(ValueError, match="250,000 directions of rank 4,096, more than fit in memory"):
        zg.load(str(path), base=str(folder))
    with pytest.raises(ValueError, match="more than fit in memory"):
        write_lora(read_journal(path), 2, str(folder), None, tmp_path / "lora")
    for tensors in (5, [{"name": [1]}], None):
        with pytest.raises(ValueError, match=r"table of tensors|nothing is trainable"):
            zg.load(str(forged(file, tensors=tensors)), base=str(folder))


@pytest.mark.parametrize(
    "wide", ["{{ 'a' * 3000000000 }}", "{{ '%1999999999d' % 1 }}", "{{ 9 ** 9 ** 9 }}", "{{ text|center(9) }}"]
)
def test_a_template_cannot_ask_for_all_memory(wide):
    with pytest.raises(ValueError, match="prompt"):
        Template("{{ text }}" + wide, "prompt").render({"text": "x"})


def test_a_task_has_no_aliases_and_no_depth_without_end():
    for text in ("a: &x [1]\nprompt: *x\n", "[" * 5000, "x" * (2 << 20)):
        with pytest.raises(ValueError, match="task t"):
            tasks.parse(text, "t")
