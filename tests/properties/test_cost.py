"""What a step may cost, counted: draws of noise, writes of weights, bytes of tensors; and what it must not touch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import zerograd as zg
from tests.oracles.methods import every_method_in_split
from zerograd.evaluate import half
from zerograd.evaluate import kernels as products
from zerograd.evaluate import products as chunks
from zerograd.evaluate.micro_batch import PeakBytes
from zerograd.noise import compiled
from zerograd.text.models import head
from zerograd.text.models.head import log_likelihoods

pytestmark = pytest.mark.full

B, T, VOCABULARY = 3, 7, 9000


@pytest.fixture(autouse=True)
def two_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head is scored in two chunks."""
    monkeypatch.setattr(head, "MIN_CHUNK_COLUMNS", VOCABULARY // 2)
    monkeypatch.setattr(head, "CHUNK_VALUES", 0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """All work is done in this thread, where it is counted."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def llama(dtype: torch.dtype = torch.float32, hidden: int = 64, layers: int = 2) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers, "vocab_size": VOCABULARY}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
    return LlamaForCausalLM(config).eval().to(dtype)


def objective(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def losses(ids: torch.Tensor) -> torch.Tensor:
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        likely = log_likelihoods(hidden.reshape(-1, hidden.shape[-1]), model.lm_head, ids[:, 1:].reshape(-1))
        return -likely.view(len(ids), -1).mean(1)

    return losses


def some_ids(examples: int = B, tokens: int = T) -> torch.Tensor:
    return torch.randint(VOCABULARY, (examples, tokens), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Numbers drawn and weights written by the kernels since the test began."""
    count: Counter[str] = Counter()

    def watch(module: Any, name: str, tell: Callable[..., dict[str, int]]) -> None:
        run = getattr(module, name)

        def watched(*args: Any) -> Any:
            count.update(tell(*args))
            return run(*args)

        monkeypatch.setattr(module, name, watched)

    watch(compiled, "fill", lambda out, *rest: {"filled": out.numel()})
    make = compiled.perturber

    def perturber(*given: Any) -> Any:
        run = make(*given)

        def watched(outs: Any, *args: Any) -> None:
            count.update({"perturbed": outs[0].numel(), "signs": sum(out.numel() for out in outs)})
            run(outs, *args)

        return watched

    monkeypatch.setattr(compiled, "perturber", perturber)
    watch(compiled, "perturb", lambda outs, c, weight, *rest: {"perturbed": weight.numel(), "signs": len(outs) * weight.numel()})
    watch(compiled, "update", lambda weight, low, kind, at, *rest: {"written": weight.numel(), "drawn": weight.numel() * len(at)})
    watch(compiled, "update_low_rank", lambda weight, *rest: {"written": weight.numel()})
    watch(products, "vectors", lambda w, low, kind, at, o, ds, signs, a: {"filled": w.numel() * len(set(ds[signs != 0].tolist()))})
    watch(products, "add_products", lambda y, x, *rest: {"products": 1})
    return count


def sizes(model: Any) -> tuple[int, int, int]:
    """Numbers in (matrices that are multiplied, vectors, the embedding)."""
    table = model.model.embed_tokens.weight.numel()
    vectors = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    return sum(p.numel() for p in model.parameters()) - vectors - table, vectors, table


def test_a_dense_step_draws_each_matrix_once_for_both_signs_and_once_for_the_update(counted):
    model = llama()
    matrices, vectors, table = sizes(model)
    opt = zg.optim.MeZO(model, self_check=False)
    opt.attach(objective(model), some_ids())
    counted.clear()
    opt.step(objective(model), some_ids())
    looked_up = B * T * 64
    assert counted["perturbed"] == matrices + 2 * looked_up
    assert counted["signs"] == 2 * matrices + 2 * looked_up
    assert counted["filled"] == vectors
    assert counted["written"] == counted["drawn"] == matrices + vectors + table


def test_a_population_draws_each_direction_once_for_its_branch_and_once_for_the_update(counted):
    model = llama()
    matrices, vectors, table = sizes(model)
    opt = zg.optim.FZOO(model, directions=4, self_check=False)
    opt.attach(objective(model), some_ids())
    counted.clear()
    opt.step(objective(model), some_ids())
    looked_up = B * T * 64
    assert counted["perturbed"] == counted["signs"] == 4 * (matrices + looked_up)  # the clean branch reads the weight itself
    assert counted["filled"] == 4 * vectors
    assert counted["written"] == matrices + vectors + table
    assert counted["drawn"] == 4 * counted["written"]


def test_a_low_rank_step_draws_factors_alone_and_writes_each_weight_once(counted):
    model = llama()
    matrices, vectors, table = sizes(model)
    opt = zg.optim.PerExample(model, self_check=False)
    opt.attach(objective(model), some_ids())
    counted.clear()
    opt.step(objective(model), some_ids())
    assert counted["perturbed"] == 0
    assert counted["products"] == 7 * 2 + 2  # the layers' products and the head's two chunks
    factors = sum(sum(p.shape) for p in model.parameters() if p.ndim == 2)
    looked_up = B * sum(model.model.embed_tokens.weight.shape)
    assert counted["filled"] == B * (factors + vectors) + looked_up
    assert counted["written"] == matrices + vectors + table
    assert counted["drawn"] == B * vectors


@every_method_in_split
def test_the_tensors_of_a_step_exceed_those_of_an_evaluation_of_as_many_rows_by_the_chunks(method, precision, monkeypatch):
    """The chunks of all workers, 2 % of the weights and 1 MB."""
    monkeypatch.setattr(chunks, "BUFFER", 2 << 20)
    model = llama(torch.float32 if precision == "float32" else torch.bfloat16, hidden=256, layers=3)
    opt = method(model, precision=precision, self_check=False)
    ids = some_ids(4, 24)
    opt.attach(objective(model), ids)
    expanded = ids.repeat(opt.branches, 1)
    with PeakBytes() as evaluation, torch.no_grad(), half.fast_products():
        objective(model)(expanded)
    with PeakBytes() as step:
        opt.step(objective(model), ids)
    assert evaluation.peak > 1 << 20
    assert step.peak <= evaluation.peak + 0.02 * sum(p.numel() * p.element_size() for p in model.parameters()) + (3 << 20)


def test_a_16_bit_head_is_cast_in_parts_however_few_tokens_are_scored(monkeypatch):
    monkeypatch.setattr(head, "MIN_CHUNK_COLUMNS", 16)
    monkeypatch.setattr(head, "CHUNK_VALUES", 1 << 16)
    torch.manual_seed(0)
    linear = torch.nn.Linear(512, VOCABULARY, dtype=torch.bfloat16)
    states, targets = torch.randn(2, 512), torch.tensor([3, VOCABULARY - 1])
    with torch.no_grad(), PeakBytes() as live:
        found = log_likelihoods(states, linear, targets)
    assert live.peak < 2 * 4 * head.CHUNK_VALUES < 4 * linear.weight.numel()
    expected = (states.double() @ linear.weight.double().T + linear.bias.double()).log_softmax(1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
