"""Steps on rewards: what is scored, what is left out, that checks call no function, and that the estimate is right."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import zerograd as zg
from tests.oracles import perturb_in_place
from tests.text.tiny import characters, tiny_model
from tests.tiers import full
from zerograd.directions import Draws, LowRank
from zerograd.errors import RewardFailed
from zerograd.queries import Scores
from zerograd.queries.fitness import FITNESS_SHAPINGS, Fitness, centred_ranks, z_scores
from zerograd.queries.plan import example_pairs, example_populations, shared_pairs
from zerograd.rewards import Prompt, RewardObjective, Rewards
from zerograd.rewards.evaluator import filled
from zerograd.rewards.functions import Reward
from zerograd.text.generation import Generator
from zerograd.text.sampling import Sampling

TEXTS = ["ab", "what is it", "c", "hello"]


def letters(completions: list[str], **columns: Any) -> list[float]:
    return [sum(c in "aeiou" for c in text) / 10 for text in completions]


def objective_of(model: Any, call: Any = letters, new_tokens: int = 5, **more: Any) -> tuple[RewardObjective, list[Prompt]]:
    tokenizer = characters()
    prompts = [Prompt({"prompt": text, "number": i}, tokenizer(text)["input_ids"]) for i, text in enumerate(TEXTS)]
    rewards = Rewards([Reward("letters", call)])
    return RewardObjective(Generator(model, 0, ()), tokenizer, rewards, Sampling(new_tokens, **more)), prompts


def test_scores_are_minus_the_rewards_of_each_member_s_answer() -> None:
    model = tiny_model()
    objective, prompts = objective_of(model)
    spaces = perturb_in_place.spaces_of(model)
    directions, plan = Draws(LowRank("rademacher"), 5).at(3), example_pairs(len(prompts))
    radii = {space.id: 0.3 for space in spaces}
    mine = objective.evaluator(spaces, prompts).scores(plan, directions, radii).values
    answers = Generator(model, 0, ()).perturbed([p.ids for p in prompts], Sampling(5), plan, spaces, directions, radii)
    texts = [[characters().decode(ids, skip_special_tokens=True) for ids in branch] for branch in answers]
    assert torch.allclose(mine, -torch.tensor([letters(branch) for branch in texts]))
    parts = objective.evaluator(spaces, prompts, micro_batch=1).scores(plan, directions, radii).values
    assert torch.equal(mine, parts)
    assert len(mine.unique()) > 1


def test_functions_see_each_prompt_s_answers_together_and_checks_call_none() -> None:
    model, calls = tiny_model(), []

    def counted(prompts: list[str], number: list[int], **columns: Any) -> list[float]:
        calls.append((prompts, number))
        return [0.1 * n for n in range(len(prompts))]

    objective, prompts = objective_of(model, counted)
    opt = zg.optim.PerExample(model, lr=0.01, eps=0.1)
    opt.attach(objective, prompts)
    assert not calls
    opt.step(objective, prompts)
    assert len(calls) == 1
    assert calls[0] == ([text for text in TEXTS for _ in range(2)], [0, 0, 1, 1, 2, 2, 3, 3])


def test_the_forward_is_checked_on_the_likelihood_of_prompts() -> None:
    """A model that uses a weight where no perturbation can follow is refused before any reward is asked."""
    model = tiny_model()
    norm = model.model.norm
    hidden = norm.weight.detach().view(-1)
    norm.forward = lambda x: x * hidden
    objective, prompts = objective_of(model)
    with pytest.raises(zg.errors.SelfCheckFailed, match=r"norm\.weight"):
        zg.optim.PerExample([("norm.weight", norm.weight)], eps=0.1).step(objective, prompts)


def test_both_signs_see_the_same_noise() -> None:
    """Without a perturbation all members of a prompt sample the same answer."""
    model = tiny_model()
    objective, prompts = objective_of(model, temperature=1.0, new_tokens=8)
    spaces = perturb_in_place.spaces_of(model)
    plan = shared_pairs(len(prompts), 3)
    scores = objective.evaluator(spaces, prompts).scores(plan, Draws(LowRank("rademacher"), 5).at(3), {s.id: 0.0 for s in spaces})
    assert objective.last is not None
    assert all(len({tuple(ids) for ids in answers}) == 1 for answers in objective.last.ids)
    assert len({tuple(answers[0]) for answers in objective.last.ids}) == len(prompts)
    assert torch.equal(scores.values, scores.values[:1].expand_as(scores.values))


def test_what_is_left_out_says_nothing() -> None:
    """A pair with an answer that was left out has no difference; the other pairs keep theirs."""
    nan = math.nan
    values = torch.tensor([[1.0, nan, 3.0], [nan, nan, 0.0], [0.0, nan, 1.0], [5.0, 2.0, 4.0]])  # two directions, two signs
    plan = example_pairs(3, 2)
    mine = filled(values, plan)
    assert not mine.isnan().any()
    differences = Fitness("plain", 2).finite_differences(Scores(plan, mine)).view(2, 3)
    assert differences.tolist() == [[0.5, 0.0, 1.0], [0.0, 0.0, -2.0]]
    one_sided = filled(torch.tensor([[1.0, 2.0], [nan, 4.0], [3.0, 6.0]]), example_populations(2, 3))
    alone = Fitness("plain", 3, sides=1).finite_differences(Scores(example_populations(2, 3), one_sided)).view(3, 2)
    assert alone[1, 0] == 0
    assert alone[:, 1].tolist() == [-3.0, 0.0, 3.0]


def test_a_batch_that_is_left_out_whole_is_one_line() -> None:
    model = tiny_model()
    objective, prompts = objective_of(model, lambda completions, **columns: [None] * len(completions))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(RewardFailed, match="every reward was None"):
        zg.optim.PerExample(model, lr=0.01, eps=0.1).step(objective, prompts)
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("shaping", FITNESS_SHAPINGS)
@pytest.mark.parametrize("sides", [1, 2])
def test_fitness_does_not_see_a_shift_of_rewards_nor_where_promised_a_scale(shaping: str, sides: int) -> None:
    query = Fitness(shaping, 3, sides)
    plan = query.plan(5, None)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(plan.branches, 5, generator=generator)
    shifted = values + torch.randn(5, generator=generator)

    def coefficients(of: torch.Tensor) -> torch.Tensor:
        return query.coefficients(query.finite_differences(Scores(plan, of)), 0.1)

    assert torch.allclose(coefficients(values), coefficients(shifted), atol=1e-5)
    scaled = coefficients(7 * values)
    assert torch.allclose(scaled, (7 if shaping == "plain" else 1) * coefficients(values), atol=1e-5)


def test_equal_scores_have_no_fitness() -> None:
    same = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    for shaped in (z_scores, centred_ranks):
        assert not shaped(same).any()
    ranks = centred_ranks(torch.tensor([[0.0, 9.0], [1.0, 9.0]]))
    assert ranks.tolist() == [[-0.5, 0.0], [0.5, 0.0]]


@full
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("sides", [1, 2])
def test_the_plain_estimate_is_unbiased_on_a_smooth_reward(shared: bool, sides: int) -> None:
    """A z-test of many estimates against the gradient of a quadratic reward of one matrix."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(0.3 * torch.randn(3, 4))
    inputs, wanted = torch.randn(6, 4), torch.randn(6, 3)

    def losses(batch: Any) -> torch.Tensor:
        x, y = batch
        return (torch.nn.functional.linear(x, weight) - y).square().sum(1)

    loss = losses((inputs, wanted)).mean()
    (gradient,) = torch.autograd.grad(loss, weight)
    spaces = zg.spaces.collect([("weight", weight)])
    query, family = Fitness("plain", 2, sides, shared), LowRank("gaussian")
    estimates = []
    for step in range(3000):
        directions = Draws(family, 1).at(step)
        plan = query.plan(6, directions)
        ask = zg.evaluate.evaluator.LocalBatch.of(spaces, losses, (inputs, wanted))
        scores = ask.scores(plan, directions, {0: 1e-2})
        coefficients = query.coefficients(query.finite_differences(scores), 1e-2).tolist()
        estimates.append(directions.estimate(spaces[0], range(len(coefficients)), coefficients)(slice(0, 3)))
    made = torch.stack(estimates)
    z = (made.mean(0) - gradient) / (made.std(0) / len(made) ** 0.5)
    assert float(z.abs().max()) < 4.5


def test_evolution_decays_towards_the_base_and_replays() -> None:
    """With no signal, each step takes lr * anchor of the way back, and the anchor is the weights before the first step."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3, bias=False)
    base = model.weight.detach().clone()
    opt = zg.optim.Evolution(model, lr=0.5, eps=0.1, anchor=0.2, self_check=False)
    with torch.no_grad():
        model.weight += 1.0
    opt.step(lambda x: torch.zeros(len(x)) + 0 * torch.nn.functional.linear(x, model.weight).sum(1), torch.randn(4, 4))
    assert torch.allclose(model.weight - base, torch.full_like(base, 0.9), atol=1e-6)


def test_steps_are_told_in_the_order_of_asking() -> None:
    """A step that is asked before the one before is told sees the weights before that one's update."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(3))
    seen: list[torch.Tensor] = []

    def losses(x: torch.Tensor) -> torch.Tensor:
        seen.append(weight.detach().clone())
        return (x * weight).sum(1)

    opt = zg.optim.MeZO([("weight", weight)], lr=0.1, self_check=False)
    x = torch.randn(4, 3)
    opt.step(losses, x)
    one = opt.ask(losses, x)
    two = opt.ask(losses, x)
    assert (one.number, two.number) == (1, 2)
    with pytest.raises(ValueError, match="step 2 was told, and step 1 is next"):
        opt.tell(two)
    opt.tell(one)
    moved = weight.detach().clone()
    opt.tell(two)
    assert opt.steps == 3
    assert not torch.equal(moved, weight)
