"""Frozen lower layers run once for all branches of a step, and their states are cached: in decoders, encoders and both."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import nn
from transformers import RobertaForSequenceClassification

from tests.text.models.test_heads import CASES, made
from tests.text.tiny import bert, roberta, t5, tiny_model, tokenizer
from zerograd.evaluate.hidden_cache import HiddenCache
from zerograd.evaluate.shared_prefix import prefix_of
from zerograd.evaluate.tensors import tensors
from zerograd.optim import PerExample
from zerograd.text.data.tasks import Example, Task, TaskSpec
from zerograd.text.models import schemes
from zerograd.text.scoring import Scorer
from zerograd.tune import setup
from zerograd.tune.run import tune
from zerograd.tune.settings import TuneSettings

pytestmark = pytest.mark.full

CUT = {
    "llama, options": ("model.layers.0", {}),
    "llama, long options": ("model.layers.0", {}),
    "gpt2, options": ("transformer.h.0", {}),
    "opt with projections, answers": ("model.decoder.layers.0", {}),
    "bert": ("bert.encoder.layer.0", {}),
    "roberta": ("roberta.encoder.layer.0", {}),
    "roberta classifier": ("roberta.encoder.layer.0", {}),
    "llama classifier": ("model.layers.0", {}),
    "t5, options": ("encoder, decoder.block.0", {}),
    "t5 untied, long options": ("encoder, decoder.block.0", {}),
    "t5, upper half of the encoder": ("encoder.block.0", {"scheme": "pattern", "pattern": r"encoder\.block\.1\."}),
    "t5, whole decoder": ("encoder", {"scheme": "pattern", "pattern": r"decoder\.block\."}),
    "bart, answers": ("model.encoder, model.decoder.layers.0", {}),
    "roberta, head alone": ("roberta.encoder", {"scheme": "pattern", "pattern": r"^lm_head\.dense"}),
}
"""Where each case is cut, and what is trained of it where that is not the upper half."""

cases = pytest.mark.parametrize("case", CUT)


def selected(case: str) -> Scorer:
    """A scorer of a model of which some layers are trained."""
    plain = case if case in CASES else {"t5": "t5, options", "roberta": "roberta"}[case.split(",")[0]]
    scorer, _ = made(plain)
    _, trained = CUT[case]
    schemes.select(scorer.model, **({"scheme": "upper", "head": scorer.head} | trained))
    return scorer


def skipped(scorer: Scorer) -> list[nn.Module]:
    """The layers that a cut model need not run."""
    assert scorer.prefix is not None
    return [module for cut in scorer.prefix.cuts for module in cut.skipped]


def flat(losses: Any) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors(losses)])


@cases
def test_a_step_with_the_prefix_is_a_step_without_it_and_runs_lower_layers_once(case):
    """Losses and trained weights have the same bits, the perturbed copies of the self-check included."""

    def trained(cut: bool) -> tuple[list[float], list[torch.Tensor], list[int]]:
        scorer = selected(case)
        batch = scorer.batch(scorer.task.train, for_training=True)
        if cut:
            scorer.share_prefix(scorer.task.train)
            assert scorer.prefix is not None
            assert scorer.prefix.name == CUT[case][0]
        optimizer = PerExample(scorer.model, lr=0.05, self_check="full")
        lowest = skipped(scorer) if cut else []
        calls: list[int] = []
        for place, module in enumerate(lowest):
            module.register_forward_hook(lambda *given, place=place: calls.append(place))
        losses = [optimizer.step(scorer.losses, scorer.run_prefix(batch)) for _ in range(2)]
        assert calls == list(range(len(lowest))) * 2
        return losses, [p.detach().clone() for p in scorer.model.parameters()], calls

    (losses, weights, _), (without, others, _) = trained(True), trained(False)
    assert losses == without
    assert len(set(losses)) == 2
    assert all(torch.equal(ours, plain) for ours, plain in zip(weights, others, strict=True))


@cases
def test_states_from_the_cache_have_the_bits_they_were_computed_with(case, tmp_path):
    """Whatever the rows and the padding; a relative position bias, the same for all rows, is made of one row."""
    scorer = selected(case)
    examples = scorer.task.train
    scorer.share_prefix(examples)
    assert scorer.layout is not None
    assert not scorer._padding_matters
    scorer.cache = HiddenCache(tmp_path)
    counted: list[int] = []
    skipped(scorer)[0].register_forward_pre_hook(lambda module, args, kwargs: counted.append(1), with_kwargs=True)
    with torch.no_grad():
        batch = scorer.batch(examples, for_training=True)
        plain = flat(scorer.losses(batch))
        counted.clear()
        first = scorer.run_prefix(batch)
        assert counted == [1]
        assert torch.equal(flat(scorer.losses(first)), plain)
        size = scorer.cache.bytes
        assert size == scorer.hidden_bytes(examples)
        counted.clear()
        again = scorer.run_prefix(batch)
        assert len(counted) == scorer.layout.sample.shared.has_tensors
        assert all(torch.equal(*pair) for pair in zip(first.entered.states, again.entered.states, strict=True))
        assert torch.equal(flat(scorer.losses(again)), plain)
        for chosen in ([examples[1]], examples[2:], examples[::-1]):
            batch = scorer.batch(chosen, for_training=True)
            assert torch.allclose(flat(scorer.losses(scorer.run_prefix(batch))), flat(scorer.losses(batch)), atol=1e-5)
        assert scorer.cache.bytes == size
    scorer.cache.close()
    scorer.cache = HiddenCache(tmp_path, again=True)
    assert scorer.cache.bytes == size


@pytest.mark.parametrize("case", ["bert", "t5, options"])
def test_states_of_an_encoder_are_known_by_its_attention_as_well(case, tmp_path):
    scorer = selected(case)
    scorer.share_prefix(scorer.task.train)
    scorer.cache = HiddenCache(tmp_path)
    batch = scorer.batch(scorer.task.train, for_training=True)
    blind = batch.attention.clone()
    blind[:, 1] = 0  # a token within the row that is not seen
    other = dataclasses.replace(batch, attention=blind)
    with torch.no_grad():
        scorer.run_prefix(batch)
        size = scorer.cache.bytes
        found = scorer.losses(scorer.run_prefix(other))
        assert scorer.cache.bytes > size
        assert torch.allclose(found, scorer.losses(other), atol=1e-5)
        assert not torch.allclose(found, scorer.losses(batch), atol=1e-3)


def test_states_of_an_encoder_that_sees_padding_are_those_of_the_padded_row(tmp_path):
    """A model that reads the mean of all its states has other scores with more padding."""
    scorer = selected("roberta classifier")
    head = scorer.model.classifier
    head.register_forward_pre_hook(lambda module, args: (args[0].mean(1, keepdim=True).expand_as(args[0]),))
    scorer.share_prefix(scorer.task.train)
    assert scorer._padding_matters
    scorer.cache = HiddenCache(tmp_path)
    batch = scorer.batch(scorer.task.train)
    wider = scorer._padded_by_one(batch)
    with torch.no_grad():
        for some in (batch, wider, batch, wider):
            assert torch.equal(flat(scorer.losses(scorer.run_prefix(some))), flat(scorer.losses(some)))
        assert not torch.allclose(flat(scorer.losses(batch)), flat(scorer.losses(wider)), atol=1e-4)
    assert scorer.cache.bytes == 32 * 4 * (batch.ids.numel() + wider.ids.numel())


def test_answers_are_a_part_of_what_a_decoders_states_are_known_by(tmp_path):
    scorer = selected("bart, answers")
    scorer.share_prefix(scorer.task.train)
    scorer.cache = HiddenCache(tmp_path)
    batch = scorer.batch(scorer.task.train)
    other = dataclasses.replace(batch, answers=batch.answers.roll(1, 0))
    with torch.no_grad():
        scorer.run_prefix(batch)
        assert torch.allclose(flat(scorer.losses(scorer.run_prefix(other))), flat(scorer.losses(other)), atol=1e-4)


def of_ids(model: Any, ids: torch.Tensor) -> Any:
    return prefix_of(model, lambda: model(input_ids=ids).logits)


def test_there_is_no_prefix_when_the_embedding_or_the_first_layer_is_trained():
    model = tiny_model()
    ids = torch.arange(8).view(2, 4)
    schemes.select(model, "upper")
    assert of_ids(model, ids).name == "model.layers.0"
    model.model.embed_tokens.requires_grad_(True)
    assert of_ids(model, ids) is None
    schemes.select(model, "full")
    assert of_ids(model, ids) is None


class Stacked(nn.Module):
    """A small stack of layers; what else the pass does is given.

    early: adds a parameter of the model itself to the embeddings. aside: the second layer reads what the first one left in the
    model. skip: the embeddings are added to what the last layer gives.
    """

    def __init__(self, early: bool = False, aside: bool = False, skip: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(10, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.offset = nn.Parameter(torch.ones(8))
        self.early, self.aside, self.skip = early, aside, skip

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        states = embedded = self.embed(ids)
        if self.early:
            states = states + self.offset
        left: list[torch.Tensor] = []
        for layer in self.layers:
            before, states = states, layer(states).tanh()
            if self.aside and left:
                states = states + left[-1]
            left.append(before)
        states = states + self.offset
        return states + embedded if self.skip else states


@pytest.mark.parametrize(
    ("kind", "cut"), [({}, True), ({"early": True}, False), ({"aside": True}, False), ({"skip": True}, True)], ids=str
)
def test_a_model_is_cut_only_where_nothing_passes_by_the_cut(kind, cut):
    """Parameters of the model itself are known by their use, layers that hand on more than their output by other bits."""
    model = Stacked(**kind).requires_grad_(False)
    model.offset.requires_grad_(True)
    ids = torch.arange(8).view(2, 4)
    prefix = prefix_of(model, lambda: model(ids))
    assert (prefix is not None) == cut
    if prefix is not None:
        model.offset.data += 1
        entered = prefix.below(lambda: model(ids))
        assert torch.equal(prefix.above(entered, lambda: model(ids)), model(ids))


def test_a_pass_that_fails_leaves_the_model_whole():
    scorer = selected("t5, options")
    modules = list(scorer.model.modules())
    batch = scorer.batch(scorer.task.train)
    scorer.share_prefix(scorer.task.train)
    begun = scorer.run_prefix(batch)

    def failing(module: nn.Module, args: Any) -> None:
        raise KeyboardInterrupt

    handle = scorer.model.decoder.block[1].register_forward_pre_hook(failing)
    with pytest.raises(KeyboardInterrupt):
        scorer.losses(begun)
    handle.remove()
    assert list(scorer.model.modules()) == modules
    assert torch.equal(scorer.losses(begun), scorer.losses(batch))


def film_task(answers: bool, mask: bool) -> Task:
    texts = ["good film", "bad", "so so, really", "fine", "not my cup of tea", "great"] * 2
    if answers:
        examples = [Example(str(i), {"text": text}, (), (), (f"{len(text)} signs",)) for i, text in enumerate(texts)]
        return Task(TaskSpec("count", prompt="{{ text }}=", answer="n", stop="!"), examples, examples[:6], examples[:6])
    examples = [Example(str(i), {"text": text}, (i % 2,)) for i, text in enumerate(texts)]
    prompt = "{{ text }}={{ mask }}." if mask else "{{ text }}="
    return Task(TaskSpec("letters", prompt=prompt, options=("n", "p"), label="label"), examples, examples[:6], examples[:6])


RUNS = {
    "bert": (bert, "masked", False),
    "roberta": (roberta, "masked", False),
    "roberta classifier": (lambda: roberta(RobertaForSequenceClassification, num_labels=2), "classifier", False),
    "t5, options": (t5, "seq2seq", False),
    "t5, generated answers": (t5, "seq2seq", True),
}


@pytest.mark.parametrize("case", RUNS)
def test_a_run_of_the_upper_layers_is_the_same_with_the_prefix_and_without(case, tmp_path, monkeypatch):
    """Its states come from the cache from the second epoch on; evaluation and generation meet the whole model."""
    build, head, answers = RUNS[case]
    build().save_pretrained(tmp_path / "model")
    tokenizer(mask=True).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(setup, "task_of", lambda settings: film_task(answers, head == "masked"))

    def run(name: str) -> tuple[dict[str, Any], bytes, list[str]]:
        given = {"minutes": 0, "steps": 3, "batch_size": 12, "threads": 1, "evals": 1, "lr": 0.02}
        given |= {"method": "mezo", "scheme": "upper"}
        given |= {"metric": "exact-match"} if answers else {}
        result = tune(TuneSettings(model=str(tmp_path / "model"), out=str(tmp_path / name), head=head, **given))
        predictions = [json.loads(line) for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()]
        return result, (tmp_path / name / "model" / "model.safetensors").read_bytes(), predictions

    result, weights, predictions = run("cut")
    monkeypatch.setattr(Scorer, "share_prefix", lambda self, examples: None)
    whole, others, plain = run("whole")
    assert result["cache_bytes"] > whole["cache_bytes"] == 0
    assert result["loss_after"] == whole["loss_after"] != whole["loss_before"]
    assert weights == others
    assert predictions == plain
