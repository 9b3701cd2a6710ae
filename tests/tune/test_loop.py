"""The training loop: backing off, finding a rate, telling trackers, and what it says of signal and noise."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from tests.cli.conftest import data as data
from tests.cli.conftest import folder as folder
from tests.cli.runs import COLUMNS, QUICK, ROWS, tuned
from tests.oracles.methods import Net, batch
from tests.text.data.files import write
from zerograd.cli import main
from zerograd.optim import MeZO
from zerograd.text import evaluation
from zerograd.tune import lr_finder
from zerograd.tune.loop import Loop
from zerograd.tune.noise_scale import NoiseScale
from zerograd.tune.settings import TuneSettings
from zerograd.tune.setup import Setup, set_up
from zerograd.tune.sinks import Sinks

pytestmark = pytest.mark.full


def tuning(folder, data, out, **more) -> Setup:
    given = {"minutes": 0, "steps": 4, "batch_size": 8, "threads": 1, "evals": 2, "text": "body", "label": "stars"}
    return set_up(TuneSettings(model=str(folder), data=(str(data),), out=str(out), **(given | more)))


def bits(made: Setup) -> list[torch.Tensor]:
    return [p.detach().clone() for p in made.model.parameters()]


def test_a_run_that_diverges_goes_back_to_its_best_weights_with_a_lower_rate(folder, data, tmp_path, monkeypatch):
    made = tuning(folder, data, tmp_path / "run", evals=4, schedule="constant", lr=0.1)
    said = []
    loop = Loop(made, sinks=Sinks(say=said.append))
    losses = iter([1.0, 0.9, 5.0, 0.8, 0.7])
    seen = []
    answers = evaluation.answers

    def dev(scorer, examples, *more):
        found = answers(scorer, examples, *more)
        seen.append(bits(made))
        return type(found)(found.texts, [next(losses)], found.scores)

    monkeypatch.setattr(evaluation, "answers", dev)
    loop.run()
    assert said == ["step 2: the dev loss is 5; back to the weights of step 1 with the learning rate times 0.3"]
    assert [row["lr"] for row in loop.state.history if "lr" in row] == pytest.approx([0.1, 0.1, 0.03, 0.03])
    assert not all(torch.equal(a, b) for a, b in zip(seen[1], seen[2], strict=True))
    assert loop.state.back_offs == 1
    assert all(torch.equal(a, b) for a, b in zip(seen[4], bits(made), strict=True)), "the last evaluation was the best"


def test_the_untouched_weights_come_back_when_nothing_was_better(folder, data, tmp_path, monkeypatch):
    made = tuning(folder, data, tmp_path / "run", lr=0.5)
    before = bits(made)
    losses = iter([1.0, 1.1, 1.2])
    answers = evaluation.answers
    monkeypatch.setattr(evaluation, "answers", lambda *given: (f := answers(*given)) and type(f)(f.texts, [next(losses)], f.scores))
    Loop(made).run()
    assert made.optimizer.steps == 4
    assert all(torch.equal(a, b) for a, b in zip(before, bits(made), strict=True))


def test_a_range_test_leaves_no_trace_and_takes_the_rate_with_the_lowest_loss(folder, data, tmp_path, monkeypatch):
    made = tuning(folder, data, tmp_path / "run", lr="auto")
    before = bits(made)
    losses = iter([2.0, 1.9, 1.5, 1.7, 1.6, 9.0])
    monkeypatch.setattr(lr_finder, "_dev_loss", lambda setup: next(losses))
    assert lr_finder.lr_range_test(made) == pytest.approx(TuneSettings().resolved().lr * lr_finder.LR_FACTORS[1])
    assert all(torch.equal(a, b) for a, b in zip(before, bits(made), strict=True))
    assert made.optimizer.steps == 0
    assert not list((tmp_path / "run").iterdir())


def test_a_rate_that_is_found_is_the_one_that_is_used(folder, data, tmp_path, capsys):
    result = tuned(folder, data, tmp_path / "run", *COLUMNS, "--lr", "auto")
    assert result["lr"] in [TuneSettings().resolved().lr * factor for factor in lr_finder.LR_FACTORS]
    assert "by a range test" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["lr"] == "auto"


def test_trackers_hear_the_settings_every_step_and_the_result(folder, data, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "heard = []\n"
        "class Tracker:\n"
        "    def begin(self, folder, settings): heard.append(('begin', settings['steps']))\n"
        "    def log(self, step, values): heard.append((step, sorted(values)))\n"
        "    def end(self, result): heard.append(('end', result['steps']))\n"
        "def make():\n    import sys; sys.heard = heard\n    return Tracker()\n"
    )
    tuned(folder, data, tmp_path / "run", *COLUMNS, "--trackers", "mine.py:make")
    import sys

    assert sys.heard[0] == ("begin", 3)
    assert [step for step, _ in sys.heard[1:-1]] == [0, 1, 2, 3]
    assert sys.heard[-1] == ("end", 3)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    history = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in history if "loss" in row]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses)
    assert len(events.Scalars("dev_loss")) == 2


@pytest.mark.parametrize(
    ("name", "says"), [("os:getcwd", "has no begin(); it must have begin, log and end"), ("os:nothing", "has no function nothing")]
)
def test_what_is_no_tracker_is_refused(folder, data, tmp_path, capsys, name, says):
    command = ["tune", "--model", str(folder), "--data", str(data), "--out", str(tmp_path / "run"), *COLUMNS, *QUICK]
    assert main([*command, "--trackers", name]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_noise_scale_is_that_of_gradients_which_are_known():
    """A linear model whose example b has the gradient g + e_b: the noise scale along random directions is var(e) / |g|^2."""
    width, examples = 64, 256
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(width, generator=generator)
    noise = 3 * torch.randn(examples, width, generator=generator)
    rows = mean + noise - noise.mean(0)
    model = nn.Linear(width, 1, bias=False)
    optimizer = MeZO(model, relative=False, eps=1e-2)
    noise = NoiseScale(32, examples)
    parts = [(rows[first:stop], stop - first, 16) for first, stop in ((0, 96), (96, examples))]
    assert math.isnan(noise.examples)
    for _ in range(100):
        noise.probe(optimizer, lambda given: model(given)[:, 0], parts)
    known = float(rows.var(0).sum() / mean.square().sum())
    assert known == pytest.approx(9, rel=0.3)
    assert noise.examples == pytest.approx(known, rel=0.25)
    assert noise.signal_to_noise == pytest.approx(32 / noise.examples)
    low, high = noise.interval
    assert low < noise.examples < high
    assert low < known < high * 1.1


def test_a_probe_changes_no_weight_and_no_step():
    net = Net()
    optimizer = MeZO(net, lr=0.1)
    before = [p.detach().clone() for p in net.parameters()]
    noise = NoiseScale(4, len(batch()))
    noise.probe(optimizer, net.losses, [(batch(), noise.probe_examples, noise.probe_examples)])
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert (optimizer.steps, optimizer.forwards, len(noise.squared_means)) == (0, 0, 2)


def test_runs_of_one_task_are_compared_on_a_page_and_others_are_refused(folder, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, more in (("a", ()), ("b", ("--method", "mezo")), ("c", ("--seed", "1"))):
        tuned(folder, data, tmp_path / name, *COLUMNS, *more)
    assert main(["report", "a", "b", "c"]) == 0
    page = (tmp_path / "comparison.html").read_text()
    assert "http" not in page
    for part in (
        f"seed 0, method per-example, lr {TuneSettings().resolved().lr}",
        f"seed 0, method mezo, lr {TuneSettings(method='mezo').resolved().lr:g}",
        "Paired differences",
        "Test result against memory",
    ):
        assert part in page
    (tmp_path / "a" / "report.html").unlink()
    assert main(["report", "a"]) == 0
    assert "</html>" in (tmp_path / "a" / "report.html").read_text()
    other = write(tmp_path / "others.csv", ROWS)
    tuned(folder, other, tmp_path / "d", *COLUMNS)
    capsys.readouterr()
    assert main(["report", "a", "d"]) == 2
    assert "d has task 'others' and a 'mine'; only runs of one task can be compared" in capsys.readouterr().err
    assert main(["report", "nowhere"]) == 2
