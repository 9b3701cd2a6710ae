"""What a user types, on small data and tiny models: tune, eval, predict, and one clear line for what is wrong."""

from __future__ import annotations

import csv
import dataclasses
import json
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.cli.runs import COLUMNS, QUICK, ROWS, tuned
from tests.text.data.files import write
from tests.text.tiny import bert, classifier, roberta, t5, tokenizer
from zerograd import journal
from zerograd.cli import main
from zerograd.machine import yaml_files
from zerograd.runs import folder as runs
from zerograd.text import evaluation
from zerograd.tune.settings import TuneSettings

pytestmark = pytest.mark.full


def test_a_table_is_tuned_on_evaluated_and_predicted(folder, data, tmp_path, capsys):
    out = tmp_path / "run"
    result = tuned(folder, data, out, *COLUMNS, "--shots", "2")
    assert (result["task"], result["metric"], result["test_rows"]) == ("mine", "accuracy", 12)
    assert {"value_majority", "value_before", "value_shots", "value_calibrated", "value_after"} <= result.keys()
    said = capsys.readouterr().out
    assert "mine: train 42, dev 6, test 12" in said
    assert "labels of the training rows: no" in said
    assert main(["eval", str(out), "--json"]) == 0
    again = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert again["value"] == pytest.approx(result["value_after"])
    assert again["rows"] == 12
    new = write(tmp_path / "new.csv", [{"body": "good one", "other": "1"}, {"body": "bad", "other": "2"}])
    for ending in (".csv", ".jsonl"):
        answers = tmp_path / f"answers{ending}"
        assert main(["predict", str(out), "--data", str(new), "--out", str(answers)]) == 0
        read = (
            list(csv.DictReader(answers.open())) if ending == ".csv" else [json.loads(x) for x in answers.read_text().splitlines()]
        )
        assert [row["body"] for row in read] == ["good one", "bad"]
        assert all(row["prediction"] in ("no", "yes") and 0.5 <= float(row["probability"]) <= 1 for row in read)


def test_predictions_are_those_of_the_run_itself(folder, data, tmp_path):
    out = tmp_path / "run"
    tuned(folder, data, out, *COLUMNS)
    scorer = runs.open_run(str(out)).scorer("cpu")
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    examples = scorer.task.read([{"body": row["text"], "stars": row["reference"]} for row in rows], "d")
    scorer.choose_head_path(examples[:2])
    assert evaluation.answers(scorer, examples).texts == [row["option_after"] for row in rows]


@pytest.mark.parametrize("scheme", ["full", "upper", "qk", "norms", "lora", "prompt", "prefix", "pattern"])
def test_every_scheme_trains_saves_and_is_opened_again(folder, data, tmp_path, capsys, scheme):
    out = tmp_path / "run"
    more = ["--pattern", r"q_proj"] if scheme == "pattern" else []
    result = tuned(folder, data, out, *COLUMNS, "--scheme", scheme, "--lr", "0.5", *more)
    capsys.readouterr()
    assert main(["eval", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["value"] == pytest.approx(result["value_after"], abs=1 / 12)
    saved = {path.suffix for path in (out / "model").rglob("*") if path.is_file()}
    assert ".safetensors" in saved
    assert not saved & {".bin", ".pt", ".pkl", ".pth"}


def test_prompts_with_completions_and_conversations_are_taught_and_answered(folder, tmp_path, capsys):
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": f"{i} + 1 =", "completion": f" {i + 1}"} for i in range(30)])
    talk = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}!"}]} for i in range(30)
    ]  # fmt: skip
    talks = write(tmp_path / "talks.jsonl", talk)
    for source, more, metric in (
        (pairs, [], "log-likelihood"),
        (pairs, ["--metric", "token-f1"], "token-f1"),
        (talks, [], "log-likelihood"),
    ):
        out = tmp_path / f"run-{source.stem}-{metric}"
        result = tuned(folder, source, out, *more, "--new-tokens", "4", "--keep", "last")
        assert result["metric"] == metric
        assert result["loss_before"] != result["loss_after"]
        answers = tmp_path / "answers.jsonl"
        assert main(["predict", str(out), "--data", str(source), "--out", str(answers)]) == 0
        assert len(answers.read_text().splitlines()) == 30
        assert "</html>" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("build", "more"),
    [
        (classifier, []),
        (t5, []),
        (bert, ["--template", "{{ body }}={{ mask }}", "--options", "n", "y"]),
    ],
    ids=["classifier", "t5", "bert"],
)
def test_models_with_other_heads_are_tuned(build, more, data, tmp_path):
    path = tmp_path / "model"
    build().save_pretrained(path)
    tokenizer(mask=True).save_pretrained(path)
    result = tuned(path, data, tmp_path / "run", *COLUMNS, *more, "--keep", "last")
    assert result["value_after"] >= 0
    assert result["loss_before"] != result["loss_after"]


@pytest.mark.parametrize("scheme", ["lora", "upper", "qk"])
@pytest.mark.parametrize(("build", "fresh"), [(bert, "pooler.dense.weight"), (roberta, "classifier.dense.weight")])
def test_all_that_a_classifier_began_without_is_trained_and_saved(build, fresh, scheme, data, tmp_path, capsys):
    """A masked BERT has no pooler, RoBERTa's head is of two layers: what a run reports is what its saved model does."""
    path = tmp_path / "model"
    build().save_pretrained(path)
    tokenizer(mask=True).save_pretrained(path)
    out = tmp_path / "run"
    result = tuned(path, data, out, *COLUMNS, "--head", "classifier", "--scheme", scheme, "--keep", "last")
    capsys.readouterr()
    assert main(["eval", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(result["loss_after"], rel=1e-5)
    saved = load_file(out / "model" / f"{'adapter_' if scheme == 'lora' else ''}model.safetensors")
    assert any(name.endswith(fresh) for name in saved)
    assert not any(name.endswith(fresh) for name in load_file(path / "model.safetensors"))
    with (out / "journal.zgj").open("rb") as file:
        tensors = journal.Reader(file, (out / "journal.zgj").stat().st_size).header["tensors"]
    assert any(tensor["name"].replace("modules_to_save.default.", "").endswith(fresh) for tensor in tensors)


@pytest.mark.parametrize("objective", ["accuracy", "f1", "own.py:mine"])
def test_a_metric_without_a_gradient_is_optimised_and_reported(folder, data, tmp_path, monkeypatch, capsys, objective):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "def mine(ours, theirs):\n    return 100 * sum(a == b for a, b in zip(ours, theirs)) / len(ours)\n"
    )
    result = tuned(folder, data, tmp_path / "run", *COLUMNS, "--objective", objective, "--method", "mezo", "--eps", "0.3")
    assert result["metric"] == objective
    assert f"{objective} of 8 rows changes in steps of 1/8" in " ".join(capsys.readouterr().out.split())
    history = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("dev_value" in row for row in history)


def test_a_yaml_file_holds_the_same_fields_and_flags_win(folder, data, tmp_path, capsys):
    assert main(["tune", "--model", str(folder), "--data", str(data), *COLUMNS, *QUICK, "--show-config"]) == 0
    shown = capsys.readouterr().out
    fields = yaml_files.load(shown)
    assert (fields["steps"], fields["data"], fields["text"], fields["lr"]) == (3, [str(data)], "body", TuneSettings().resolved().lr)
    config = tmp_path / "run.yaml"
    config.write_text(shown)
    assert main(["tune", "--config", str(config), "--out", str(tmp_path / "a"), "--steps", "2"]) == 0
    assert json.loads((tmp_path / "a" / "result.json").read_text())["steps"] == 2


def test_a_dry_run_says_what_a_run_would_take_and_writes_nothing(folder, data, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["tune", "--model", str(folder), "--data", str(data), "--out", str(out), *COLUMNS, *QUICK, "--dry-run"]
    assert main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in (
        "rows: train 42, dev 6, test 12",
        "per step, 3 steps in",
        "peak memory: about",
        "disk: about",
        "journal.zgj, model/",
    ):
        assert part in said
    assert not out.exists()


def test_a_task_file_is_all_that_a_new_task_needs(folder, data, tmp_path):
    task = tmp_path / "stars.yaml"
    task.write_text(
        f"prompt: '{{{{ body }}}} Good?'\noptions: [n, y]\nlabels: ['no', 'yes']\nlabel: stars\ndata: {data}\nrows: {{test: 9}}\n"
    )
    command = ["tune", "--model", str(folder), "--task", str(task), "--out", str(tmp_path / "run"), *QUICK]
    assert main(command) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test_rows"] == 9


def test_several_sources_are_one_training_set(folder, data, tmp_path):
    other = write(tmp_path / "other.jsonl", [{**row, "body": row["body"] + " again"} for row in ROWS[:20]])
    result = tuned(folder, data, tmp_path / "run", *COLUMNS, "--data", f"{data}", f"{other}=2", "--test", str(data))
    assert result["test_rows"] == 60


BAD = {
    "a missing column": (["--text", "review"], "text is 'review', which is not a column of mine; the columns are body, stars"),
    "a template without its placeholder": (["--template", "Good?"], "prompt 'Good?' has no placeholder"),
    "a template with single braces": (["--template", "{body}"], "two braces on each side"),
    "a template of another column": (["--template", "{{ title }}"], "'title' is undefined; the columns are body, stars, year"),
    "options that are one token sequence": (["--options", "é", "ü"], "have the same tokens in this model"),
    "too few options": (["--options", "a"], "options are 1 word, and stars has 2 values (no, yes)"),
    "an option beyond the context": (["--options", "n", "y" * 70, "--max-tokens", "64"], "has 71 tokens, and a row has at most 64"),
    "a device that is not there": (["--device", "cuda:7"], "device 'cuda:7' is not there; this machine has"),
    "no such device": (["--device", "tpu"], "device 'tpu' is not there"),
    "a head that the model lacks": (["--head", "classifier", "--scheme", "prompt"], "scheme prompt is for causal models"),
    "no such metric": (["--objective", "bleu"], "metric 'bleu' is not one of"),
    "a metric of a batch with rows apart": (["--objective", "f1"], "use method mezo"),
    "mix without a metric": (["--mix", "0.5"], "the objective is the loss alone"),
    "a pattern of nothing": (["--scheme", "pattern", "--pattern", "zzz"], "trains nothing of this LlamaForCausalLM; names are"),
    "a broken pattern": (["--scheme", "pattern", "--pattern", "("], "pattern '(' is not a regular expression"),
    "no pattern": (["--scheme", "pattern"], "scheme is pattern and pattern is empty"),
    "a task and columns": (["--task", "sst2"], "text describes the columns of --data, and task sst2 has its own"),
    "a config that is not there": (["--config", "no.yaml"], "config no.yaml is not there; --show-config writes one"),
    "chat without a template of it": (["--shots", "2", "--chat"], "leave --shots out"),
    "a dev file that is not there": (["--dev", "dev.csv"], "data 'dev.csv' is not there"),
    "virtual tokens of no adapter": (["--virtual-tokens", "3"], "which only scheme prefix and prompt uses; this is scheme "),
    "an adapter in 16 bits": (["--scheme", "lora", "--precision", "split"], "scheme lora keeps its adapter in float32"),
    "patience without evaluations": (["--patience", "2", "--evals", "0"], "there are no evals to wait for"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(folder, data, tmp_path, capsys, case):
    more, says = BAD[case]
    out = tmp_path / "run"
    assert main(["tune", "--model", str(folder), "--data", str(data), "--out", str(out), *COLUMNS, *QUICK, *more]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert says in error[0]
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "has no rows"),
        (b"body,stars\n", "has no rows"),
        (b"body,stars\ngood,yes\n,no\n" * 3, "row 2: body is empty"),
        (b"body,stars\ngood,yes\nb\xffd,no\n", "line 3 is not UTF-8"),
        (b"body,stars\ngood,yes\nbad,\n", "row 2: stars is empty"),
        (b"body,stars\ngood,yes\nfine,yes\n", "there is one option"),
    ],
)
def test_a_broken_table_is_one_line_and_nothing_is_written(folder, tmp_path, capsys, content, says):
    path, out = tmp_path / "mine.csv", tmp_path / "run"
    path.write_bytes(content)
    assert main(["tune", "--model", str(folder), "--data", str(path), "--out", str(out), *COLUMNS, *QUICK]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert says in error[0]
    assert not out.exists()


def test_an_unknown_label_of_another_split_is_named(folder, data, tmp_path, capsys):
    test = write(tmp_path / "test.csv", [*ROWS[:3], {"body": "x", "stars": "maybe", "year": "1"}])
    command = ["tune", "--model", str(folder), "--data", str(data), "--out", str(tmp_path / "run"), *COLUMNS, *QUICK]
    assert main([*command, "--test", str(test)]) == 2
    assert f"test {test}: row 4: stars is 'maybe'; it must be one of no, yes" in capsys.readouterr().err


def test_a_metric_that_returns_a_text_is_named_and_nothing_written(folder, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("def mine(ours, theirs):\n    return 'good'\n")
    command = ["tune", "--model", str(folder), "--data", str(data), "--out", str(tmp_path / "run"), *COLUMNS, *QUICK]
    assert main([*command, "--metric", "own.py:mine"]) == 2
    assert "metric own.py:mine returned 'good'; it must return a finite number" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_seen_before_anything_is_trained(folder, data, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    command = ["tune", "--model", str(folder), "--data", str(data), "--out", str(tmp_path / "run"), *COLUMNS, *QUICK]
    assert main(command) == 2
    assert "its disk has 0 MB free" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_while_training_costs_the_best_weights_alone(folder, data, tmp_path, monkeypatch, capsys):
    def full(snapshot, about):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zerograd.journal.snapshot.Snapshot.take", full)
    tuned(folder, data, tmp_path / "run", *COLUMNS)
    assert "the run will end with the last ones" in " ".join(capsys.readouterr().out.split())
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["eval", "nowhere"], "run 'nowhere' is not there; give the folder that zerograd tune wrote"),
        (["predict", "nowhere", "--data", "a.csv", "--out", "b.csv"], "run 'nowhere' is not there"),
        (["predict", ".", "--data", "a.csv", "--out", "b.txt"], "out is b.txt; it must end in one of .csv, .tsv, .jsonl"),
        (["predict", ".", "--data", "a.csv", "--out", "b.csv"], "has no settings.json; give the folder of a finished run"),
        (["eval", ".", "--task", "sst2"], "task is the run's own; leave it out, or leave RUN out"),
    ],
)
def test_eval_and_predict_refuse_what_is_no_run(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


def test_rows_that_lack_the_prompts_column_are_not_predicted(folder, data, tmp_path, capsys):
    out = tmp_path / "run"
    tuned(folder, data, out, *COLUMNS)
    new = write(tmp_path / "new.csv", [{"text": "good"}])
    assert main(["predict", str(out), "--data", str(new), "--out", str(tmp_path / "a.csv")]) == 2
    assert "'body' is undefined; the columns are text" in capsys.readouterr().err
    assert not (tmp_path / "a.csv").exists()


def test_the_best_weights_on_dev_are_kept_and_patience_ends_a_run(folder, data, tmp_path, monkeypatch):
    """The second evaluation is the best, after two steps; the run ends after two that are worse, with the weights of then."""
    losses = iter([1.0, 0.9, 1.0, 1.1])
    answers = evaluation.answers

    def said(scorer, examples, *more):
        return (
            dataclasses.replace(answers(scorer, examples, *more), losses=[next(losses)])
            if len(examples) == 6
            else answers(scorer, examples, *more)
        )

    monkeypatch.setattr(evaluation, "answers", said)
    steps = ["--steps", "12", "--evals", "6", "--lr", "0.5", "--schedule", "constant"]
    kept = tuned(folder, data, tmp_path / "a", *COLUMNS, *steps, "--patience", "2")
    assert kept["steps"] == 6
    assert "2 evaluations without an improvement" in kept["stopped"]
    losses = iter([1.0, 0.9])
    short = tuned(folder, data, tmp_path / "b", *COLUMNS, *steps, "--steps", "2", "--evals", "1", "--keep", "last")
    same = [
        torch.equal(a, b)
        for a, b in zip(*(AutoModelForCausalLM.from_pretrained(tmp_path / x / "model").parameters() for x in "ab"), strict=True)
    ]
    assert all(same)
    assert short["value_after"] == kept["value_after"]


def test_a_reader_that_has_enough_is_no_error(tmp_path):
    """As `| head -1` is: nothing is said of a broken pipe."""
    rows = tmp_path / "rows.jsonl"
    fields = {"protocol": "p", "model": "m", "scheme": "s", "task": "t", "prompt": "p", "seed": 0, "study": "s"}
    more = {"accuracy": 0.5, "evaluations": 1, "seconds": 1.0, "peak_bytes": 1, "budget": {"evaluations": 1}}
    with rows.open("w") as file:
        for i in range(2000):
            file.write(json.dumps({"key": str(i), "method": f"method {i}"} | fields | more) + "\n")
    command = f"{shlex.quote(sys.executable)} -m zerograd bench table {shlex.quote(str(rows))} | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout == "### t, p prompt, m: at matched evaluations (1)\n"
    assert done.stderr == ""
