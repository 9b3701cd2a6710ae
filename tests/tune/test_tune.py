"""`zerograd tune` from the command line to the run's folder, on a tiny model in a folder."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import signal
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.text.tiny import characters
from zerograd.cli import main
from zerograd.cli.tune import summary
from zerograd.machine import memory
from zerograd.text.data import splits
from zerograd.text.data.tasks import Task, TaskSpec
from zerograd.text.objectives import LossObjective
from zerograd.text.scoring import Scorer
from zerograd.tune import results, tune
from zerograd.tune import setup as setups
from zerograd.tune.loop import Loop
from zerograd.tune.resume import resumed_settings
from zerograd.tune.run import run
from zerograd.tune.settings import TuneSettings, from_record
from zerograd.tune.setup import Setup, set_up

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama with a character tokenizer whose two options are one token each."""
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=101,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    characters().save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def small_task(monkeypatch):
    """The film reviews, forty rows a split, with options of one character."""
    full = splits.load("sentiment-movies")
    spec = TaskSpec("letters", prompt="{{ text | trim }}=", options=("n", "p"), label="label", cut="text")
    cut = Task(spec, full.train[:40], full.dev[:40], full.test[:40])
    monkeypatch.setattr(setups, "task_of", lambda settings: cut)
    return cut


def command(folder, out, *more):
    return ["tune", "--model", str(folder), "--out", str(out), "--minutes", "0", "--batch-size", "8", "--threads", "1", *more]


def test_the_last_line_is_the_result_and_the_folder_is_complete(folder, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(command(folder, out, "--steps", "4", "--evals", "2", "--json")) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    for name in (
        *("model", "task", "method", "scheme", "seed", "accuracy_before", "accuracy_calibrated", "accuracy_after", "ci_before"),
        *("ci_after", "ci_gain", "test_rows", "steps", "forwards", "seconds", "seconds_per_step", "peak_bytes"),
        *("inference_peak_bytes", "run"),
    ):
        assert name in result, name
    assert (result["steps"], result["test_rows"], result["run"]) == (4, 40, str(out))
    assert result["forwards"] >= 8
    history = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history] == [0, 1, 2, 3, 4]
    assert sum("dev_value" in row for row in history) == 3
    assert json.loads((out / "result.json").read_text()) == result
    assert json.loads((out / "settings.json").read_text())["batch_size"] == 8
    assert "</html>" in (out / "report.html").read_text()
    assert not list(out.glob("*.partial"))
    predictions = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert math.isclose(sum(p["right_after"] for p in predictions) / 40, result["accuracy_after"])


def test_plain_transformers_loads_the_tuned_model_and_scores_as_reported(folder, tmp_path, small_task):
    out = tmp_path / "run"
    tuning = set_up(
        TuneSettings(model=str(folder), out=str(out), minutes=0, steps=3, batch_size=8, evals=0, threads=1, scheme="full", lr=0.5)
    )
    result = run(tuning)
    model = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    columns = [tokenizer(option)["input_ids"][0] for option in small_task.options]
    right = 0
    with torch.no_grad():
        for example in small_task.test:
            ids = torch.tensor([tokenizer(example.row["text"].strip() + "=")["input_ids"]])
            right += int(model(ids).logits[0, -1, columns].float().argmax()) == example.label
    assert abs(right / 40 - result["accuracy_after"]) <= 1 / 40  # one row may tie in bfloat16 logits
    moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), _parameters(folder), strict=True)]
    assert all(moved)


def _parameters(folder, dtype=torch.bfloat16):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).parameters()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(folder, tmp_path):
    def trained(seed):
        tuning = set_up(
            TuneSettings(
                model=str(folder), out=str(tmp_path / "x"), minutes=0, steps=3, batch_size=8, seed=seed, threads=1, keep="last"
            )
        )
        Loop(tuning).run()
        return torch.cat([p.detach().flatten().float() for p in tuning.model.parameters()])

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


def test_ctrl_c_ends_training_and_keeps_what_was_learnt(folder, tmp_path, capsys):
    out = tmp_path / "run"

    def press(progress):
        if progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    result = tune(TuneSettings(model=str(folder), out=str(out), minutes=0, steps=50, batch_size=8, evals=0, threads=1), press)
    assert 2 <= result["steps"] <= 3
    assert "interrupted after step" in result["stopped"]
    assert (out / "report.html").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model", "nowhere"], "'nowhere' is not there"),
        (["--eps", "0"], "eps is 0.0; it must be above 0"),
        (["--batch-size", "0"], "batch_size is 0; it must be a number of at least 1"),
        (["--lr", "-1"], "lr is -1.0"),
        (["--lr", "nan"], "lr is nan"),
        (["--method", "lion"], "method is 'lion'; choose one of mezo, per-example"),
        (["--steps", "0"], "minutes, steps and evaluations are all 0"),
        (["--batch-size", "1"], "batch_size is 1; method per-example divides by the spread of differences"),
        (["--batch-size", "1", "--method", "grzo"], "batch_size is 1; method grzo divides by the spread of differences"),
        (["--batch-size", "1", "--method", "addax"], "batch_size is 1, which method addax cannot divide"),
        (["--eps", "0.1", "--method", "adamw"], "eps is 0.1, and method adamw perturbs nothing; leave it out"),
        (["--eps", "0.1", "--method", "forward-gradient"], "eps is 0.1, and method forward-gradient perturbs nothing"),
        (["--scheme", "full", "--layers", "2"], "layers is 2, which only scheme upper and qk uses"),
        (["--method", "mezo", "--method-options", "rank=2"], "'rank=2'; method mezo has directions, sides, distribution"),
        (["--method-options", "rank"], "method per-example has directions, sides, rank, standardised, distribution, each given as"),
        (["--method-options", "rank=two"], "'rank=two'; its value must be of the kind of 1"),
        (["--method-options", "rank=0"], "rank is 0; it must be at least 1"),
        (["--method", "adam", "--method-options", "betas=[0.9]"], "betas are [0.9]; they must be two numbers"),
        *(
            (["--objective", "accuracy", "--method", name], f"objective is accuracy, which has no gradient, and method {name} diff")
            for name in ("adamw", "sgd", "hybrid", "addax", "forward-gradient")
        ),
        (["--minutes", "inf"], "minutes is inf; it must be a number"),
        (["--layers", "200"], "layers is 200; this LlamaForCausalLM has"),
    ],
)
def test_bad_input_is_one_line_exit_two_and_nothing_written(folder, tmp_path, capsys, flags, says):
    out = tmp_path / "run"
    assert main([*command(folder, out, "--steps", "1"), *flags]) == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert error.startswith("zerograd tune: ")
    assert len(error.splitlines()) == 1
    assert not out.exists()


def test_a_model_with_nothing_to_train_is_refused(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("zerograd.text.models.schemes.select", lambda model, scheme, **more: model.requires_grad_(False))
    assert main(command(folder, tmp_path / "run", "--steps", "1")) == 2
    assert "nothing is trainable" in capsys.readouterr().err


@pytest.mark.parametrize("within", ["", "below"])
def test_out_that_is_a_file_or_below_one_is_refused_and_the_file_left_alone(folder, tmp_path, capsys, within):
    out = tmp_path / "run"
    out.write_text("mine")
    assert main(command(folder, out / within, "--steps", "1")) == 2
    assert f"{out} is a file; name a folder" in capsys.readouterr().err
    assert out.read_text() == "mine"


def test_out_that_cannot_be_written_is_refused_before_anything_is_loaded(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr("zerograd.text.models.loading.load", None)
    assert main(command(folder, tmp_path / "run", "--steps", "1")) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_ctrl_c_after_training_keeps_the_tuned_model(folder, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    answers = Setup.answers

    def interrupted(setup, examples, phase, *more):
        if phase == "tuned, test":
            raise KeyboardInterrupt
        return answers(setup, examples, phase, *more)

    monkeypatch.setattr(Setup, "answers", interrupted)
    assert main(command(folder, out, "--steps", "2", "--keep", "last")) == 130
    assert f"the tuned model is {out}/model" in capsys.readouterr().err
    left = {"model", "tensorboard", "journal.zgj", "metrics.jsonl", "untouched.json"}
    assert {path.name for path in out.iterdir()} == left
    before, after = _parameters(folder), _parameters(out / "model")
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_run_whose_losses_stay_not_finite_ends_keeps_the_weights_before_and_says_so(folder, tmp_path, monkeypatch):
    losses, calls = Scorer.losses, []

    def diverging(scorer, batch):
        calls.append(1)
        return losses(scorer, batch) * (torch.nan if len(calls) > 12 else 1)

    out = tmp_path / "run"
    tuning = set_up(TuneSettings(model=str(folder), out=str(out), minutes=0, steps=50, batch_size=8, evals=0, threads=1))
    monkeypatch.setattr(tuning.optimizer, "self_check", False)
    tuning.warm_up()
    tuning.objective = LossObjective(lambda batch: diverging(tuning.scorer, batch))
    monkeypatch.setattr(tuning, "warm_up", lambda listen: None)
    result = run(tuning)
    assert result["skipped_steps"] == 10
    assert "10 steps in a row" in result["stopped"]
    rows = [json.loads(line, parse_constant=pytest.fail) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows
    assert all("loss" in row for row in rows[: result["steps"] - 10])


@pytest.mark.parametrize("precision", ["float32", "split", "bfloat16"])
@pytest.mark.filterwarnings("ignore:bfloat16 precision rounds")
def test_every_precision_is_tuned_and_saved_in_the_precision_that_it_is_evaluated_in(folder, tmp_path, precision):
    out = tmp_path / "run"
    assert main(command(folder, out, "--steps", "2", "--precision", precision)) == 0
    assert {p.dtype for p in _parameters(out / "model", dtype="auto")} == {
        torch.float32 if precision == "float32" else torch.bfloat16
    }


@pytest.mark.parametrize(("method", "each"), [("mezo", 2), ("conservative", 5), ("fzoo", 9)])
def test_a_budget_in_evaluations_counts_branches_of_steps_and_no_checks(folder, tmp_path, method, each):
    out = tmp_path / "run"
    more = ["--evaluations", str(3 * each - 1), "--evals", "1", "--method", method, "--lr", "0.01"]
    assert main(command(folder, out, *more)) == 0
    result = json.loads((out / "result.json").read_text())
    assert (result["steps"], result["evaluations"]) == (3, 3 * each)
    assert result["forwards"] > result["evaluations"], "the checks before the first step are evaluations too"
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["evaluations"] for row in rows] == [0, each, 2 * each, 3 * each]
    assert result["state_bytes"] == 0
    rates = [row["lr"] for row in rows[1:]]
    budget = 3 * each - 1
    assert rates == pytest.approx([0.01 * (1 - step * each / budget) for step in range(3)])
    with pytest.raises(ValueError, match="has ended"):
        resumed_settings(out, {})
    assert main(["tune", "--resume", str(out), "--evaluations", str(4 * each)]) == 0
    assert json.loads((out / "result.json").read_text())["evaluations"] == 4 * each


def test_a_method_with_state_says_how_large_it_is(folder, tmp_path):
    assert main(command(folder, tmp_path / "run", "--steps", "1", "--evals", "0", "--method", "momentum")) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["state_bytes"] > 0


def test_rates_and_radii_are_those_of_method_and_scheme():
    def of(**more):
        made = TuneSettings(**more).resolved()
        return made.lr, made.eps

    assert of() == of(scheme="qk") == pytest.approx((0.12, 0.06))
    assert of(scheme="upper") == (0.04, 0.02)
    assert of(scheme="qk", method="mezo") == pytest.approx((0.03, 0.06))
    assert of(scheme="qk", method="adamw") == (2e-5, None)
    assert of(scheme="qk", method="forward-gradient") == (pytest.approx(0.03), None)
    assert of(scheme="lora", method="adamw") == (1e-3, None)
    assert of(scheme="qk", lr=0.1, eps=0.01) == (0.1, 0.01)
    assert of(scheme="qk", lr="auto")[0] == "auto"
    with pytest.raises(ValueError, match="eps is 'auto'; it must be a number"):
        TuneSettings(eps="auto")
    for scheme in ("upper", "qk"):  # as settings are read again, and with another scheme
        again = dataclasses.replace(TuneSettings(method="forward-gradient", scheme=scheme).resolved(), scheme="full")
        assert again.eps is None
    older = dataclasses.asdict(TuneSettings(method="adamw").resolved()) | {"eps": 0.02}
    assert from_record(older, "run").eps is None
    with pytest.raises(ValueError, match=r"eps is 0\.03, and method adamw perturbs nothing; leave it out"):
        TuneSettings(method="adamw", eps=0.03)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library has another allocator")
def test_what_is_freed_goes_back_at_once_where_layers_are_checkpointed(folder, tmp_path, monkeypatch):
    program = """
import torch
from zerograd.machine import memory
torch.ones(1 << 20)  # what glibc has seen freed, it keeps the next time
memory.give_back_at_once()
kept = [torch.ones(1 << 19) for _ in range(100)]
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
before = resident()
del kept[::2]
print(before - resident())
"""
    freed = int(subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert freed > 0.9 * 50 * 2**21
    called = []
    monkeypatch.setattr(memory, "give_back_at_once", lambda: called.append(1))
    for options in ([], ["checkpointing=true"]):
        set_up(
            TuneSettings(
                model=str(folder),
                task="sentiment-movies",
                method="adamw",
                scheme="lora",
                method_options=options,
                out=str(tmp_path / "r"),
            )
        )
    assert called == [1]


def made(folder, out, **more):
    given = {"minutes": 0, "steps": 4, "batch_size": 8, "threads": 1, "evals": 1}
    return set_up(TuneSettings(model=str(folder), out=str(out), **(given | more)))


@pytest.mark.parametrize(("method", "goes_on"), [("mezo", True), ("adamw", False), ("addax", False)])
def test_going_on_is_promised_where_there_is_a_journal(folder, tmp_path, monkeypatch, method, goes_on):
    tuning = made(folder, tmp_path / "interrupted", method=method)
    step = tuning.step

    def stopping(examples):
        if tuning.optimizer.steps == 2:
            raise KeyboardInterrupt
        return step(examples)

    tuning.step = stopping
    said = run(tuning)["stopped"]
    assert said.startswith("interrupted after step 2; the result is of the best weights so far")
    assert ("--resume" in said) == goes_on
    full = made(folder, tmp_path / "full", method=method)
    monkeypatch.setattr(results, "save_model", lambda setup: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="after step 4: no space left; ") as raised:
        run(full)
    assert ("--resume" in str(raised.value)) == ("the journal has all steps" in str(raised.value)) == goes_on


@pytest.mark.parametrize(
    ("method", "says"),
    [("mezo", "forward passes, no backward pass"), ("hybrid", "the work of 22 forward passes, 4 backward passes in it")],
)
def test_forward_and_backward_passes_are_those_that_a_step_takes(folder, tmp_path, method, says):
    result = run(made(folder, tmp_path / "run", method=method, scheme="full"))
    assert says in summary(result)


def test_a_step_that_a_method_refuses_is_not_one_whose_branches_scored_the_same(folder, tmp_path, monkeypatch):
    """A refused step is the lesson: no larger eps is due."""
    refused = made(folder, tmp_path / "conservative", method="conservative")
    query = type(refused.optimizer.method.query)
    refine = query.refine
    monkeypatch.setattr(query, "refine", lambda *given: 0 * refine(*given))
    assert run(refused)["flat_steps"] == 0
    monkeypatch.setattr(Scorer, "losses", lambda scorer, batch: torch.ones(len(batch.labels)))
    flat = made(folder, tmp_path / "mezo", method="mezo")
    flat.optimizer.self_check = False
    assert run(flat)["flat_steps"] == 4


def test_the_room_that_a_run_needs_counts_the_state_in_its_snapshots(folder, tmp_path):
    plain, adam = (made(folder, tmp_path / name, method=name, scheme="full") for name in ("mezo", "adam"))
    assert adam.optimizer.memory.nbytes > 0
    assert adam.disk_bytes == plain.disk_bytes + 2 * adam.optimizer.memory.nbytes


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("adamw", ()),
        ("hybrid", ()),
        ("forward-gradient", ()),
        ("per-example", ("standardised=false",)),
        ("per-example", ("directions=2", "sides=1")),
    ],
)
def test_a_batch_of_one_is_enough_where_no_spread_is_needed(folder, tmp_path, method, options):
    tuning = made(folder, tmp_path / "run", method=method, batch_size=1, scheme="full", keep="last", method_options=options)
    before = [space.exact().clone() for space in tuning.optimizer.spaces]
    assert run(tuning)["steps"] == 4
    assert not all(torch.equal(was, space.exact()) for was, space in zip(before, tuning.optimizer.spaces, strict=True))
