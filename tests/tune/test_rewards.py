"""Runs on rewards from the command line: what they write, that they resume and replay to the bit, and what they refuse."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

from tests.text.tiny import characters, tiny_model
from zerograd.cli import main
from zerograd.runs.journals import read_journal

pytestmark = pytest.mark.full

FUNCTIONS = """
import math
CALLS = []

def vowels(completions, **columns):
    CALLS.append(len(completions))
    return [sum(c in "aeiou" for c in text) / 5 for text in completions]

def short(completions, wanted, **columns):
    return [None if w < 0 else -abs(len(text) - w) / 10 for text, w in zip(completions, wanted)]

async def later(completions, log_metric, log_extra, trainer_state, **columns):
    log_metric("judged", len(completions))
    log_extra("judge", ["fine"] * len(completions))
    return [0.0] * len(completions)

def broken(completions, **columns):
    raise RuntimeError("the judge is gone")

def never(completions, **columns):
    return [None] * len(completions)

number = 3
"""


@pytest.fixture
def folder(tmp_path: Any) -> Any:
    tiny_model().save_pretrained(tmp_path / "model")
    characters().save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"say {i} {'x' * (i % 5)}", "wanted": i % 7} for i in range(40)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rewards.py").write_text(FUNCTIONS)
    return tmp_path


def command(folder: Any, *more: str, steps: int = 4, out: str = "run") -> list[str]:
    return [
        "tune", "--model", str(folder / "model"), "--data", str(folder / "prompts.jsonl"), "--scheme", "full", "--minutes", "0",
        "--steps", str(steps), "--batch-size", "4", "--evals", "2", "--threads", "1", "--new-tokens", "6", "--off-task", "0",
        "--lr", "0.05", "--out", str(folder / out), "--json", *more,
    ]  # fmt: skip


def reward(folder: Any, names: str) -> list[str]:
    return ["--reward", f"{folder / 'rewards.py'}:{names}"]


def result_of(capsys: Any) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.mark.parametrize("method", ["per-example", "evolution", "mezo"])
def test_a_run_on_rewards_writes_what_any_run_writes(method: str, folder: Any, capsys: Any) -> None:
    more = ["--reward-weights", "1,0.5", "--method", method, "--temperature", "0.8"]
    assert main([*command(folder, *reward(folder, "vowels,short"), *more)]) == 0
    result = result_of(capsys)
    assert result["steps"] == 4
    assert result["metric"] == "reward"
    assert result["reward_after"] == result["value_after"]
    assert list(result["rewards"]) == ["vowels", "short"]
    assert result["generations"] == 4 * {"per-example": 8, "evolution": 16, "mezo": 8}[method]
    assert 0 < result["generated_tokens"] <= result["generations"] * 6
    assert result["test_prompts"] == result["test_rows"] == 8
    run = folder / "run"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all({"reward/vowels", "reward/short", "tokens", "flat_prompts"} <= set(row) for row in rows[1:])
    assert all("dev_reward" in row for row in rows if "dev_loss" in row)
    page = (run / "report.html").read_text()
    assert "vowels" in page
    (folder / "new.jsonl").write_text('{"prompt": "say 9"}\n')
    assert main(["predict", str(run), "--data", str(folder / "new.jsonl"), "--out", str(folder / "said.jsonl")]) == 0
    assert json.loads((folder / "said.jsonl").read_text())["prediction"]
    capsys.readouterr()
    assert main(["eval", str(run), "--json", "--threads", "1"]) == 0
    assert result_of(capsys)["value"] == pytest.approx(result["value_after"], abs=1e-6)


@pytest.mark.parametrize("more", [(), ("--method", "evolution", "--method-options", "anchor=0.1"), ("--eps-schedule", "cosine")])
def test_a_run_resumes_and_replays_to_the_bit(more: tuple[str, ...], folder: Any, capsys: Any) -> None:
    asked = [*reward(folder, "vowels"), "--keep", "last", "--temperature", "1", *more]
    assert main(command(folder, *asked, steps=5, out="whole")) == 0
    assert main(command(folder, *asked, steps=2, out="parts")) == 0
    assert main(["tune", "--resume", str(folder / "parts"), "--steps", "5", "--threads", "1"]) == 0
    steps = [read_journal(folder / name / "journal.zgj").steps for name in ("whole", "parts")]
    constant = "--eps-schedule" not in more  # the schedules are of the run's own length
    if constant:
        assert [s.coefficients.tolist() for s in steps[0][:2]] == [s.coefficients.tolist() for s in steps[1][:2]]
    assert main(["replay", str(folder / "parts"), "--out", str(folder / "again")]) == 0
    saved = [
        torch.load(p, weights_only=True) if p.suffix == ".bin" else _tensors(p) for p in _weights(folder, ("parts/model", "again"))
    ]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])
    capsys.readouterr()


def _weights(folder: Any, names: tuple[str, ...]) -> list[Any]:
    return [next((folder / name).glob("*.safetensors")) for name in names]


def _tensors(path: Any) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_an_interrupted_run_goes_on_to_the_same_weights(folder: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that fails at the third step ends the run in one line; mended, it is resumed to the weights of a run without."""
    asked = [*reward(folder, "vowels"), "--keep", "last"]
    assert main(command(folder, *asked, steps=5, out="whole")) == 0
    file = folder / "rewards.py"
    assert main(command(folder, *asked, steps=1, out="broken")) == 0  # the functions' file is the run's own from here on
    text = file.read_text()
    stopped = text.replace("CALLS.append(len(completions))", "CALLS.append(len(completions))\n    assert len(CALLS) != 4, 'gone'")
    file.write_text(stopped)
    capsys.readouterr()
    assert main(command(folder, *asked, steps=5, out="stopped")) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(r"reward vowels raised AssertionError: gone; .* --resume", said)
    file.write_text(text)
    assert main(["tune", "--resume", str(folder / "stopped"), "--threads", "1"]) == 0
    one, other = map(_tensors, _weights(folder, ("whole/model", "stopped/model")))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_lag_awaits_rewards_while_the_next_answers_are_made(folder: Any, capsys: Any) -> None:
    assert main(command(folder, *reward(folder, "vowels,later"), "--lag", "1", "--keep", "last")) == 0
    assert result_of(capsys)["steps"] == 4
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["judged"] == 16  # two directions of four prompts
    steps = read_journal(folder / "run" / "journal.zgj").steps
    assert [step.number for step in steps] == [0, 1, 2, 3]
    assert main(["replay", str(folder / "run"), "--out", str(folder / "again")]) == 0
    one, other = map(_tensors, _weights(folder, ("run/model", "again")))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_dry_run_says_how_much_a_reward_tells(folder: Any, capsys: Any) -> None:
    assert main([*command(folder, *reward(folder, "vowels"), "--dry-run")]) == 0
    said = " ".join((lambda out: out.err + out.out)(capsys.readouterr()).split())
    assert "spread" in said
    assert not (folder / "run").exists()


def test_a_conversation_is_a_prompt(folder: Any, capsys: Any) -> None:
    tokenizer = characters()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}bot: "
    tokenizer.save_pretrained(folder / "model")
    rows = [{"prompt": [{"role": "user", "content": f"say {i}"}], "wanted": 1} for i in range(20)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text(
        "def one(prompts, completions, **columns):\n"
        "    assert prompts[0][0]['role'] == 'user' and completions[0][0]['role'] == 'assistant'\n"
        "    return [len(c[0]['content']) / 10 for c in completions]\n"
    )
    assert main(command(folder, *reward(folder, "one"), steps=2)) == 0
    assert result_of(capsys)["steps"] == 2


REFUSED = {
    "no function": (["--reward", "rewards.py:nothing"], "reward"),
    "no prompts": (["--reward", "names-topic"], None),
    "not callable": (["--reward", "{}/rewards.py:number"], "rewards.py has"),
    "objective": (["--reward", "{}/rewards.py:vowels", "--objective", "accuracy"], "objective is accuracy; give one of them"),
    "weights": (["--reward", "{}/rewards.py:vowels,short", "--reward-weights", "1"], "reward_weights has 1 numbers for 2 rewards"),
    "words": (["--reward", "{}/rewards.py:vowels", "--reward-weights", "much"], "reward_weights is 'much'; give numbers"),
    "temperature": (["--reward", "{}/rewards.py:vowels", "--temperature", "-1"], "temperature is -1.0"),
    "sampling": (["--reward", "{}/rewards.py:vowels", "--top-k", "5"], "at temperature 0 nothing is sampled"),
    "without": (["--temperature", "1"], "temperature is 1.0, which only a run with --reward uses"),
    "backward": (["--reward", "{}/rewards.py:vowels", "--method", "adamw"], "has no gradient, and method adamw differentiates"),
    "long": (["--reward", "{}/rewards.py:vowels", "--max-tokens", "16", "--new-tokens", "12"], "tokens, and 4 are left beside"),
    "all None": (["--reward", "{}/rewards.py:never"], "every reward was None"),
    "raises": (["--reward", "{}/rewards.py:broken"], "reward broken raised RuntimeError: the judge is gone"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_one_line(case: str, folder: Any, capsys: Any) -> None:
    flags, message = REFUSED[case]
    if case == "no prompts":
        (folder / "prompts.jsonl").write_text('{"ask": "x"}\n' * 5)
        message = "row 1 has no column 'prompt', which rewards need; it has ask"
    assert main(command(folder, *(flag.replace("{}", str(folder)) for flag in flags))) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(message) in said
    assert "Traceback" not in said
    assert not (folder / "run" / "result.json").exists()


@pytest.mark.parametrize("more", [(), ("--mix", "0.5"), ("--method", "mezo")])
def test_a_metric_of_a_row_s_answer_takes_any_method(more: tuple[str, ...], folder: Any, capsys: Any) -> None:
    """token-f1 of generated answers, alone and mixed with the loss, by directions of each example's own and by shared ones."""
    rows = [{"prompt": f"say {i}:", "completion": f"{i % 3} a b"} for i in range(30)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--objective", "token-f1", "--eps", "0.3", *more]
    assert main(_without(command(folder, *flags), "--off-task")) == 0
    result = result_of(capsys)
    assert result["metric"] == "token-f1"
    assert result["steps"] == 4
    assert main(["replay", str(folder / "run"), "--out", str(folder / "again")]) == 0


def _without(flags: list[str], name: str) -> list[str]:
    at = flags.index(name)
    return flags[:at] + flags[at + 2 :]


def test_a_model_that_writes_nothing_is_refused(folder: Any, capsys: Any) -> None:
    from transformers import BertConfig, BertForMaskedLM

    from tests.text.tiny import SIZE, tokenizer

    BertForMaskedLM(BertConfig(**SIZE)).save_pretrained(folder / "model")
    tokenizer(mask=True).save_pretrained(folder / "model")
    assert main(command(folder, *reward(folder, "vowels"))) == 2
    assert "reward needs a model that writes answers" in capsys.readouterr().err


@pytest.mark.parametrize("own", [False, True])
def test_a_shipped_run_names_built_in_rewards_alone(own: bool, folder: Any, capsys: Any) -> None:
    """A file from elsewhere names no function to load: its rewards are left out, and are asked for in one line."""
    rows = [{"prompt": f"say {i}", "topic": "a"} for i in range(40)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(command(folder, *(reward(folder, "vowels") if own else ["--reward", "names-topic"]), steps=2)) == 0
    result = result_of(capsys)
    assert main(["ship", str(folder / "run"), "--out", str(folder / "tuned.zg")]) == 0
    capsys.readouterr()
    flags = ["--base", str(folder / "model"), "--data", str(folder / "prompts.jsonl"), "--threads", "1", "--json"]
    code = main(["eval", str(folder / "tuned.zg"), *flags])
    if own:
        assert code == 2
        assert "there is no reward that scores them" in capsys.readouterr().err
    else:
        assert code == 0
        assert result_of(capsys)["value"] == pytest.approx(result["value_after"], abs=1e-6)


def test_what_functions_say_of_each_answer_is_written(folder: Any) -> None:
    assert main([*command(folder, *reward(folder, "short,later"), steps=1)]) == 0
    rows = [json.loads(line) for line in (folder / "run" / "predictions.jsonl").read_text().splitlines()]
    assert rows
    for row in rows:
        for when in ("before", "after"):
            said = row[f"rewards_{when}"]
            assert (said["later"], said["judge"]) == (0.0, "fine")
            wanted = int(re.match(r"say (\d+)", row["text"])[1]) % 7  # type: ignore[index]
            assert said["short"] == pytest.approx(-abs(len(row[f"option_{when}"]) - wanted) / 10)
