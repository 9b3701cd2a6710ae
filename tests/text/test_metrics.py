"""Metrics, and training on them."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.text.tiny import answer_task, characters, options_task, tiny_model
from zerograd.optim import MeZO
from zerograd.text import intervals as statistics
from zerograd.text import metrics
from zerograd.text.generation import generate
from zerograd.text.objectives import GeneratedObjective, MetricObjective
from zerograd.text.scoring import Scorer
from zerograd.tune.settings import TuneSettings

pytestmark = pytest.mark.full


def test_known_values():
    assert metrics.metric("accuracy")(["a", " b"], ["a", "c"]) == 0.5
    assert metrics.metric("exact-match")(["The  cat!", "dog"], ["cat", ["cow", "a dog"]]) == 1
    assert metrics.metric("token-f1")(["the black cat"], [["cat", "white cat"]]) == pytest.approx(2 / 3)
    assert metrics.token_f1("", "") == 1
    assert metrics.token_f1("", "a b c") == 0


def test_macro_f1_is_scikit_learns_by_hand():
    """Classes a: precision 1/2, recall 1; b: precision 1, recall 1/3; c: never said."""
    predictions, references = ["a", "a", "b", "a"], ["a", "b", "b", "b"]
    assert metrics.macro_f1(predictions, references) == pytest.approx((2 * 1 / (3 + 1) + 2 * 1 / (1 + 3)) / 2)
    assert metrics.macro_f1(["a"], ["c"]) == 0


def test_a_metric_of_a_users_file_is_called_with_predictions_and_references(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def share(ours, theirs):\n    return sum(map(str.__eq__, ours, theirs)) / 4\n")
    assert metrics.metric(f"{tmp_path / 'mine.py'}:share")(["a", "b"], ["a", "c"]) == 0.25
    monkeypatch.chdir(tmp_path)
    assert metrics.metric("mine:share")(["a", "b"], ["a", "b"]) == 0.5


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return 'high'", "returned 'high'; it must return a finite number"),
        ("return None", "returned None"),
        ("return float('nan')", "returned nan"),
        ("return [1]", r"returned [1]"),
    ],
)
def test_a_metric_that_returns_no_number_is_named(tmp_path, body, says):
    (tmp_path / "mine.py").write_text(f"def m(p, r):\n    {body}\n")
    with pytest.raises(ValueError, match=r".") as raised:
        metrics.metric(f"{tmp_path / 'mine.py'}:m")(["a"], ["a"])
    assert says in str(raised.value)


def test_a_metric_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    for name, says in (
        ("bleu", "is not one of accuracy, exact-match, token-f1, f1, nor module:function"),
        ("nowhere_at_all:m", "No module named"),
        (f"{tmp_path}/no.py:m", "is not there"),
        (f"{tmp_path}/broken.py:m", "fails: ZeroDivisionError"),
        ("math:nothing", "has no function nothing"),
    ):
        with pytest.raises(ValueError, match=r".") as raised:
            metrics.metric(name)
        assert says in str(raised.value)


@pytest.mark.parametrize("name", ["accuracy", "f1"])
@pytest.mark.parametrize("mix", [1.0, 0.5])
def test_an_objective_without_a_gradient_is_the_metric_of_each_branch(name, mix):
    """Of each copy of the batch apart: the scores of a step are those of really perturbed models."""
    task = options_task()
    scorer = Scorer(tiny_model(), characters(), task)
    batch = scorer.batch(task.train)
    objective = MetricObjective(scorer, metrics.metric(name), mix)
    optimizer = MeZO(scorer.model, lr=0.0, eps=0.5, self_check=False)
    seen = []

    def watched(batch):
        losses = objective(batch)
        seen.append((scorer.scores(batch).argmax(1), losses))
        return losses

    optimizer.step(watched, batch)
    chosen, losses = seen[-1]
    assert len(losses) == 8
    words = ["n", "p"]
    for branch in (slice(0, 4), slice(4, 8)):
        predictions = [words[i] for i in chosen[branch]]
        references = [words[i] for i in batch.labels]
        value = metrics.metric(name)(predictions, references)
        if mix == 1:
            assert float(losses[branch].mean()) == pytest.approx(1 - value)
    assert torch.isfinite(losses).all()


def test_a_metric_of_a_whole_batch_is_of_the_whole_batch(tmp_path, monkeypatch):
    """Where rows are so long that a pass would take some of them, too."""
    from zerograd.text import scoring
    from zerograd.tune.setup import set_up

    monkeypatch.setattr(scoring, "FORWARD_TOKENS", 100)
    model = tmp_path / "model"
    tiny_model().save_pretrained(model)
    characters().save_pretrained(model)
    common = {"model": str(model), "task": "sentiment-tweets", "method": "mezo", "out": str(tmp_path / "run")}
    for name, parts in (("f1", 1), ("accuracy", 8)):
        tuning = set_up(TuneSettings(**common, objective=name, batch_size=8))
        batch = tuning.batch(tuning.task.train[:8])
        assert tuning.micro_batch(batch) == 8 // parts


def test_generated_answers_are_an_objective_of_each_branch():
    """The scores of a step are those of a model whose weights were really perturbed, and generated with."""
    scorer = Scorer(tiny_model(), characters(), answer_task())
    examples = scorer.task.train
    objective = GeneratedObjective(scorer, metrics.Metric("length", lambda ps, rs: sum(map(len, ps)) / 100), new_tokens=6)
    optimizer = MeZO(scorer.model, lr=0.0, eps=0.5, self_check=False)
    values = []
    closure = objective.closure(examples)
    directions = optimizer.draws.at(0)
    optimizer.step(lambda: values.append(closure()) or values[-1])
    expected = []
    for sign in (1.0, -1.0):
        perturbed = copy.deepcopy(scorer.model)
        for space, parameter in zip(optimizer.spaces, perturbed.parameters(), strict=True):
            parameter.data = space.exact().view(space.shape) + directions.z(space, 0) * (sign * 0.5 * space.scale)
        other = Scorer(perturbed, characters(), answer_task())
        expected.append(1 - sum(map(len, generate(other, examples, 6, len(examples)))) / 100)
    assert [float(value) for value in values[-2:]] == pytest.approx(expected)


def test_a_metric_of_options_is_refused_where_there_are_none():
    with pytest.raises(ValueError, match="needs options that all rows share"):
        MetricObjective(Scorer(tiny_model(), characters(), answer_task()), metrics.metric("token-f1"))


def test_offsets_of_two_options_are_the_best_threshold_and_of_more_raise_the_accuracy():
    generator = torch.Generator().manual_seed(0)
    for options in (2, 4):
        labels = torch.randint(options, (300,), generator=generator)
        scores = torch.randn(300, options, generator=generator) + 2 * torch.nn.functional.one_hot(labels, options)
        scores += torch.tensor([0.0, 1.5, -1.0, 0.7])[:options]
        offsets = statistics.best_offsets(scores.tolist(), labels.tolist())
        plain, shifted = (float((s.argmax(1) == labels).float().mean()) for s in (scores, scores + torch.tensor(offsets)))
        assert shifted > plain + 0.05
        if options == 2:
            margins = (scores[:, 1] - scores[:, 0]).tolist()
            assert offsets == pytest.approx([0.0, -statistics.best_threshold(margins, labels.tolist())])


def test_the_bootstrap_covers_a_mean_as_the_normal_interval_does():
    values = torch.randn(400, generator=torch.Generator().manual_seed(1)).tolist()
    low, high = statistics.bootstrap(lambda some: sum(values[i] for i in some) / len(some), len(values))
    normal = statistics.mean(values)
    assert abs(low - normal[0]) < 0.02
    assert abs(high - normal[1]) < 0.02
    assert statistics.mean([1.0] * 8 + [0.0] * 2) == statistics.wilson(8, 10)
