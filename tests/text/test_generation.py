"""Answers of perturbed models, made in one batch: token for token those of models whose weights were really perturbed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
import transformers as tr

from tests.oracles import perturb_in_place
from zerograd import noise
from zerograd.directions import Dense, Directions, Draws, LowRank
from zerograd.evaluate import passes as repeated
from zerograd.noise import SAMPLE, Address, reference
from zerograd.queries import Plan
from zerograd.queries.plan import example_pairs, shared_pairs
from zerograd.text import shared_prefill
from zerograd.text.generation import Generator
from zerograd.text.sampling import Noise, Sampling

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64, "max_position_embeddings": 64}
GROUPED = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
PAD, END = 1, 2
ROUTED = ("mixtral", "mixtral-eager")


def _llama() -> Any:
    return tr.LlamaForCausalLM(tr.LlamaConfig(**GROUPED))


def _lora() -> Any:
    return peft.get_peft_model(_llama(), peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))


MODELS: dict[str, Callable[[], Any]] = {
    "llama": _llama,
    "llama-lora": _lora,
    "llama-prompts": lambda: peft.get_peft_model(_llama(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)),
    "gpt2": lambda: tr.GPT2LMHeadModel(tr.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=64)),
    "opt": lambda: tr.OPTForCausalLM(tr.OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=16, pad_token_id=PAD)),
    "qwen3": lambda: tr.Qwen3ForCausalLM(tr.Qwen3Config(**GROUPED, head_dim=8)),
    "gemma3": lambda: tr.Gemma3ForCausalLM(tr.Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=8, query_pre_attn_scalar=8)),
    "mistral": lambda: tr.MistralForCausalLM(tr.MistralConfig(**GROUPED, sliding_window=8)),
    "mixtral": lambda: tr.MixtralForCausalLM(tr.MixtralConfig(**GROUPED, num_local_experts=4)),
    "mixtral-eager": lambda: tr.MixtralForCausalLM(
        tr.MixtralConfig(**GROUPED, num_local_experts=4, experts_implementation="eager")
    ),
    "mamba": lambda: tr.MambaForCausalLM(tr.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64, state_size=8)),
    "gpt-neox": lambda: tr.GPTNeoXForCausalLM(tr.GPTNeoXConfig(**SIZES, intermediate_size=48)),
    "t5": lambda: tr.T5ForConditionalGeneration(
        tr.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=64, decoder_start_token_id=0)
    ),
}
PROMPTS = [[5, 9, 17], [40, 8, 12, 33, 6], [3], [50, 51, 52, 7]]


@functools.cache
def built(name: str) -> Any:
    """A model far from any symmetry, whose answers end here and there. Tests share it, and none may change it."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1:
                parameter += 0.3 * torch.randn(parameter.shape)
            else:
                parameter.normal_(0, 2 / parameter[0].numel() ** 0.5)
    return model


def generator_of(model: Any) -> Generator:
    return Generator(model, PAD, (END, 7, 11), decoder=bool(model.config.is_encoder_decoder))


def really_perturbed(model: Any, plan: Plan, directions: Directions, sampling: Sampling) -> list[list[list[int]]]:
    """Each answer alone, by a copy of the model whose weights were really perturbed."""
    spaces, twins = perturb_in_place.spaces_of(model), perturb_in_place.Twins()
    found: list[list[list[int]]] = []
    for branch in range(plan.branches):
        found.append([])
        for i, prompt in enumerate(PROMPTS):
            direction = int(plan.direction[branch]) + (i if plan.own_directions else 0)
            twin = twins.of(model, spaces, directions, direction, float(plan.coefficient[branch]))
            alone = _Numbered(i, sampling)
            found[-1].append(generator_of(twin).answers([prompt], alone, Noise(directions.seed, directions.step))[0])
    return found


class _Numbered(Sampling):
    """A sampling for one prompt alone, which has another number in its batch."""

    def __init__(self, number: int, sampling: Sampling) -> None:
        super().__init__(**vars(sampling))
        object.__setattr__(self, "number", number)

    def chosen(self, logits: torch.Tensor, noise: Noise | None, numbers: Any, position: int) -> torch.Tensor:
        return super().chosen(logits, noise, [self.number], position)  # type: ignore[attr-defined]


PLAIN = ("llama", "llama-lora", "gpt2", "opt", "qwen3", "gemma3", "mistral", "mamba", "gpt-neox", "t5")
"""Models whose later passes are by the script; a mixture's routing chooses rows by their values, so its rows are followed."""


@pytest.mark.full
@pytest.mark.parametrize("name", [*PLAIN, *ROUTED])
def test_which_passes_are_by_the_script(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    by_script, followed, real = [], [], repeated.Passes._pass

    def counted(self: Any, original: Any, args: Any, kwargs: Any) -> Any:
        before = len(by_script)
        made = real(self, original, args, kwargs)
        followed.extend([1] * (len(by_script) == before))
        return made

    monkeypatch.setattr(repeated.Passes, "_pass", counted)
    monkeypatch.setattr(
        repeated.Passes, "_by_script", lambda self, *rest, real=repeated.Passes._by_script: by_script.append(1) or real(self, *rest)
    )
    model = built(name)
    spaces = perturb_in_place.spaces_of(model)
    directions, plan = Draws(LowRank("rademacher"), 5).at(3), example_pairs(len(PROMPTS))
    generator = Generator(model, PAD, (), decoder=bool(model.config.is_encoder_decoder))
    answers = generator.perturbed(PROMPTS, Sampling(6), plan, spaces, directions, {s.id: 0.1 for s in spaces})
    assert {len(answer) for branch in answers for answer in branch} == {6}
    assert (len(followed), len(by_script)) == ((6, 0) if name in ROUTED else (2, 4))
    assert all(type(value) is torch.nn.Parameter for value in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.full
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("family", ["each", "shared-low", "shared-dense"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_those_of_really_perturbed_models(name: str, family: str, temperature: float) -> None:
    model = built(name)
    kind, plan = {
        "each": (LowRank("rademacher"), example_pairs(len(PROMPTS))),
        "shared-low": (LowRank("rademacher", 2), shared_pairs(len(PROMPTS), 2)),
        "shared-dense": (Dense("rademacher"), shared_pairs(len(PROMPTS))),
    }[family]
    directions = Draws(kind, 5).at(3)
    sampling = Sampling(12, temperature)
    spaces = perturb_in_place.spaces_of(model)
    generator = generator_of(model)
    radii = {space.id: perturb_in_place.EPS for space in spaces}
    mine = generator.perturbed(PROMPTS, sampling, plan, spaces, directions, radii)
    assert mine == really_perturbed(model, plan, directions, sampling)
    if temperature:
        assert len({tuple(answer) for branch in mine for answer in branch}) > len(PROMPTS), "no direction changes an answer"
    in_parts = generator.perturbed(PROMPTS, sampling, plan, spaces, directions, radii, examples=1)
    assert in_parts == mine


SHARING = ("llama", "gpt2", "opt", "qwen3", "gemma3", "mistral", "mixtral", "gpt-neox")
"""Models whose frozen lower layers read each prompt once for all its members."""


@pytest.mark.full
@pytest.mark.parametrize("name", [*SHARING, "mamba", "t5"])
def test_frozen_layers_read_a_prompt_once_for_all_members(name: str) -> None:
    model = MODELS[name]().eval()
    model.load_state_dict(built(name).state_dict())
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(".1." in parameter_name)
    below = [module for module_name, module in model.named_modules() if module_name.endswith(".0") and module_name.count(".") < 4]
    widths: list[int] = []
    handle = below[0].register_forward_hook(lambda module, args, output: widths.append(len(args[0])))
    spaces = perturb_in_place.spaces_of(model)
    directions, plan = Draws(LowRank("rademacher"), 5).at(3), example_pairs(len(PROMPTS), 3)
    generator = generator_of(model)
    asked = (PROMPTS, Sampling(12, 1.0), plan, spaces, directions, {space.id: perturb_in_place.EPS for space in spaces})
    generator.perturbed(*asked)  # finds out where the model can be cut
    widths.clear()
    mine = generator.perturbed(*asked)
    assert widths[0] == (len(PROMPTS) if name in SHARING else 6 * len(PROMPTS))
    handle.remove()
    assert mine == really_perturbed(model, plan, directions, Sampling(12, 1.0))
    assert len({tuple(answer) for branch in mine for answer in branch}) > len(PROMPTS), "no direction changes an answer"


def test_prompts_of_as_many_tokens_as_there_are_rows_are_shared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built.__wrapped__("llama")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".1." in name)
    spaces, generator = perturb_in_place.spaces_of(model), generator_of(model)
    prompts = [[(7 * i + 3 * j) % 50 + 12 for j in range(16)] for i in range(4)]
    asked = (prompts, Sampling(6), example_pairs(4, 2), spaces, Draws(LowRank("rademacher"), 5).at(3), {s.id: 0.1 for s in spaces})
    mine = generator.perturbed(*asked)
    monkeypatch.setattr(shared_prefill, "FEWER", 0.0)
    assert mine == generator_of(model).perturbed(*asked)


def test_a_pass_that_departs_from_the_script_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that does something else at its fifth pass gets the answers of passes that are all followed."""
    model = built.__wrapped__("llama")
    norm, calls = model.model.norm.forward, []

    def forward(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return norm(x) * (1 if len(calls) < 5 else model.model.norm.weight.mean() ** 0)

    monkeypatch.setattr(model.model.norm, "forward", forward)
    spaces = perturb_in_place.spaces_of(model)
    directions, plan = Draws(LowRank("rademacher"), 5).at(3), example_pairs(len(PROMPTS))
    asked = (PROMPTS, Sampling(8), plan, spaces, directions, {s.id: 0.1 for s in spaces})
    mine = generator_of(model).perturbed(*asked)
    assert len(calls) > 8, "the batch began anew"
    monkeypatch.undo()
    assert mine == generator_of(model).perturbed(*asked)


@pytest.mark.full
def test_dropping_answers_that_have_ended_changes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("llama")
    spaces = perturb_in_place.spaces_of(model)
    directions, plan = Draws(LowRank("rademacher"), 5).at(3), example_pairs(len(PROMPTS), 3)
    asked = (PROMPTS, Sampling(24, 1.0), plan, spaces, directions, {s.id: 0.1 for s in spaces})
    generator = generator_of(model)
    widths = []
    generate = Generator._generate
    monkeypatch.setattr(Generator, "_generate", lambda self, ids, *rest: widths.append(len(ids)) or generate(self, ids, *rest))
    mine = generator.perturbed(*asked)
    assert len(set(widths)) > 3, "no answer was dropped"
    monkeypatch.setattr(Generator, "_can_drop", False)
    assert mine == generator_of(model).perturbed(*asked)
    assert any(answer[-1] in (END, 7, 11) and len(answer) < 24 for branch in mine for answer in branch)


def test_noise_of_samples_is_an_address() -> None:
    """The same numbers on both back ends, uniform, and a function of seed, step, prompt and position alone."""
    address, rows = Address(3, 2, 1, 0, SAMPLE), torch.tensor([4, 0, 9])
    drawn = noise.uniform(address, rows, 1001)
    assert torch.equal(drawn, reference.uniform(address, rows, 1001))
    assert 0 < drawn.min() <= drawn.max() < 1
    assert abs(float(drawn.mean()) - 0.5) < 0.03
    gumbel = Noise(3, 2).gumbel([9, 4, 9], 1, 1001, torch.device("cpu"))
    assert torch.equal(gumbel[0], gumbel[2])
    assert torch.equal(gumbel[1], -(-drawn[0].log()).log().float())
    assert not torch.equal(gumbel, Noise(3, 2).gumbel([9, 4, 9], 2, 1001, torch.device("cpu")))


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.7)])
def test_samples_have_the_softmax_s_probabilities(top_k: int, top_p: float) -> None:
    """A chi-square test of 20,000 samples of one distribution at temperature 0.7."""
    logits, temperature, count = torch.tensor([0.3, 2.0, 1.1, -0.5, 1.6, 0.9]), 0.7, 20_000
    sampling = Sampling(1, temperature, top_k, top_p)
    picked = sampling.chosen(logits.expand(count, -1), Noise(1, 0), range(count), 0).argmax(1)
    probability = (logits / temperature).softmax(0)
    order = probability.argsort(descending=True)
    kept = order[: top_k or len(order)] if top_p == 1 else order[: int((probability[order].cumsum(0) < top_p).sum()) + 1]
    expected = torch.zeros_like(probability)
    expected[kept] = probability[kept] / probability[kept].sum()
    counts = picked.bincount(minlength=len(logits)).double()
    assert counts[expected == 0].sum() == 0
    inside = expected > 0
    chi_square = ((counts - count * expected)[inside] ** 2 / (count * expected[inside])).sum()
    assert float(chi_square) < 20.5  # of five degrees of freedom at most: a chance of one in a thousand


@pytest.mark.parametrize(("field", "value"), [("temperature", -1.0), ("top_p", 0.0), ("top_k", -2), ("new_tokens", 0)])
def test_a_sampling_out_of_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        Sampling(**{field: value})  # type: ignore[arg-type]
