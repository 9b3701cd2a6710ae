"""Bytes of evaluations and of backward passes, against real models."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers
from transformers import (
    AlbertConfig,
    AutoModelForSeq2SeqLM,
    BertConfig,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    T5Config,
)

from tests.planner.described import DESCRIBED, llama, trained
from zerograd.evaluate.micro_batch import PeakBytes
from zerograd.evaluate.shared_prefix import prefix_of
from zerograd.planner import activations, machine, method_cost, seconds, shapes
from zerograd.planner.settings import PlanSettings
from zerograd.text.models import head, schemes
from zerograd.text.models import loading as models

pytestmark = pytest.mark.full


@pytest.mark.parametrize(("rows", "tokens"), [(8, 16), (2, 64), (64, 64)])
@pytest.mark.parametrize("layers", [1, 5])
def test_an_evaluation_holds_the_bytes_that_a_real_one_holds(rows, tokens, layers, tmp_path):
    model = llama(layers)
    found = shapes._shape_of(model.config, "causal", 4)
    ids = torch.ones(rows, tokens, dtype=torch.long)
    with torch.no_grad(), PeakBytes() as live:
        model.get_decoder()(input_ids=ids, use_cache=False)
    assert activations.evaluation_peak(found, rows, tokens, torch.bfloat16) == pytest.approx(live.peak, rel=0.1)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3, 7])
def test_back_propagation_keeps_the_bytes_that_a_real_one_keeps(rank, checkpointing, layers):
    model = llama(layers)
    found = shapes._shape_of(model.config, "causal", 4)
    if rank:
        model = schemes.select(model, "lora", lora_rank=rank).get_base_model()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
        model.train()
    with PeakBytes() as live:
        states = model.get_decoder()(input_ids=torch.ones(32, 32, dtype=torch.long), use_cache=False).last_hidden_state
        between = live.now
        states.float().sum().backward()
    held = activations.backpropagation(found, 32, 32, torch.bfloat16, rank, checkpointing)
    assert held.activations == pytest.approx(between, rel=0.1)
    assert held.activations + held.temporary == pytest.approx(live.peak, rel=0.1)


def test_scored_answers_hold_what_the_head_holds():
    model = llama(hidden=256)
    found = shapes._shape_of(model.config, "causal", 4)
    states, targets = torch.zeros(600, 256, dtype=torch.bfloat16), torch.zeros(600, dtype=torch.long)
    with torch.no_grad(), PeakBytes() as live:
        head.log_likelihoods(states.float(), model.get_output_embeddings(), targets)
    within = 4 * 600 * 101  # logits again, which logsumexp makes within
    assert activations._head_bytes(found, 600, torch.bfloat16) == pytest.approx(live.peak + within, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("trained", [False, True])
def test_scored_answers_keep_their_logits_for_the_backward_pass(dtype, trained):
    model = llama(hidden=256).to(dtype).requires_grad_(trained)
    found = shapes._shape_of(model.config, "causal", 4)
    states, targets = torch.zeros(600, 256, dtype=dtype, requires_grad=True), torch.zeros(600, dtype=torch.long)
    with PeakBytes() as live:
        likely = head.log_likelihoods(states.float(), model.get_output_embeddings(), targets)
        between = live.now
        likely.sum().backward()
    kept, over = activations._head_backpropagation(found, 600, dtype, trained)
    assert kept == pytest.approx(between, rel=0.15)
    assert kept + over == pytest.approx(live.peak, rel=0.15)
    few, more = (activations.backpropagation(found, 8, 16, dtype, scored=scored) for scored in (0, 4))
    assert more.activations - few.activations == activations._head_backpropagation(found, 32, dtype, trained=True)[0]


def test_capped_logits_are_made_of_all_positions():
    sizes = {"vocab_size": 5000, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Gemma2Config(**sizes, num_key_value_heads=2, head_dim=8, attn_implementation="eager")
    found, plain = (shapes._shape_of(c, "causal", 4) for c in (config, LlamaConfig(**sizes)))
    assert [(one.has_full_logits, activations.can_share_prefix(one)) for one in (found, plain)] == [(True, False), (False, True)]
    model = Gemma2ForCausalLM(config).to(torch.bfloat16).eval()
    with torch.no_grad(), PeakBytes() as live:
        model(input_ids=torch.ones(4, 32, dtype=torch.long), use_cache=False)
    assert activations.evaluation_peak(found, 4, 32, torch.bfloat16) == pytest.approx(live.peak, rel=0.1)
    assert live.peak > 2 * 4 * 32 * 5000 * 2
    targets = torch.zeros(4, 32, dtype=torch.long)
    with torch.no_grad(), PeakBytes() as live:
        head.answer_log_likelihoods(
            model, model(input_ids=torch.ones(4, 32, dtype=torch.long), use_cache=False).logits, targets, "logits"
        )
    assert activations.evaluation_peak(found, 4, 32, torch.bfloat16, 32) == pytest.approx(live.peak, rel=0.25)


@pytest.mark.parametrize("case", ["llama", "gpt2", "opt", "bert", "t5", "albert"])
def test_layers_below_run_once_where_a_run_can_cut_there(case):
    """9 branches through half of the layers and one pass through the rest; of T5 the encoder, frozen, in one pass; ALBERT has one
    layer, which it repeats.
    """
    small = {"vocab_size": 50, "num_hidden_layers": 2, "num_attention_heads": 4}
    six = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 6, "num_decoder_layers": 2, "num_heads": 4}
    wide = {"hidden_size": 32, "intermediate_size": 48, **small}
    config, head, share = {
        "llama": (LlamaConfig(**wide), "causal", 5 / 9),
        "gpt2": (GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1), "causal", 5 / 9),
        "opt": (OPTConfig(hidden_size=32, ffn_dim=48, word_embed_proj_dim=32, **small), "causal", 5 / 9),
        "bert": (BertConfig(**wide), "masked", 5 / 9),
        "t5": (T5Config(vocab_size=50, **six), "seq2seq", 1 / 9),
        "albert": (AlbertConfig(embedding_size=16, **wide), "masked", 1),
    }[case]
    found = shapes._shape_of(config, head, 4)
    model = schemes.select(getattr(transformers, models.HEADS[head]).from_config(config).eval(), "upper", head=head)
    ids = torch.ones(2, 4, dtype=torch.long)
    more = {"decoder_input_ids": ids} if head == "seq2seq" else {}
    assert (
        activations.can_share_prefix(found)
        == (share < 1)
        == (prefix_of(model, lambda: model(input_ids=ids, **more).logits) is not None)
    )
    place = machine.Machine("cpu", "", 10**10, 10**10, 1e9, 1e10, 0, 1, ())
    clock = seconds.Clock(found, place, PlanSettings(**DESCRIBED), 0.0, share < 1)
    optimizer = method_cost.small_optimizer("fzoo")
    whole, upper = (clock.step(optimizer, scheme, method_cost.MethodCost(0, 0, 0), 8) for scheme in ("full", "upper"))
    assert upper / whole == pytest.approx(share, rel=0.05)


def test_sequence_to_sequence_rows_go_through_the_encoder():
    config = T5Config(d_model=32, d_ff=64, d_kv=8, num_layers=6, num_decoder_layers=2, num_heads=4, vocab_size=50)
    found = shapes._shape_of(config, "seq2seq", 4)
    real = AutoModelForSeq2SeqLM.from_config(config)
    assert found.layers == 6
    assert found.body == sum(p.numel() for name, p in real.encoder.block.named_parameters() if p.ndim > 1)
    assert found.trained["lora"] == trained(peft.get_peft_model(real, peft.LoraConfig(r=4)))


SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 50}
OTHERS = {
    "gpt2": (GPT2Config(vocab_size=50, n_embd=64, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=1), "causal"),
    "opt": (OPTConfig(**SMALL, ffn_dim=96, word_embed_proj_dim=64), "causal"),
    "mixtral": (MixtralConfig(**SMALL, intermediate_size=96, num_key_value_heads=2, num_local_experts=4), "causal"),
    "t5": (T5Config(d_model=64, d_ff=128, d_kv=16, num_layers=3, num_heads=4, vocab_size=50), "seq2seq"),
    "bert, masked": (BertConfig(**SMALL, intermediate_size=128), "masked"),
    "bert, classifier": (BertConfig(**SMALL, intermediate_size=128), "classifier"),
}


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize(("rows", "rank"), [(2, 0), (32, 0), (32, 4)])
def test_passes_of_other_models_hold_what_real_ones_hold(case, rows, rank):
    config, head_of = OTHERS[case]
    found = shapes._shape_of(config, head_of, 4)
    assert found.layers == 3
    model = getattr(transformers, models.HEADS[head_of]).from_config(config, dtype=torch.bfloat16).eval()
    body = model.get_encoder() if head_of == "seq2seq" else model.base_model
    more = {"use_cache": False} if head_of == "causal" else {}
    ids = torch.ones(rows, 32, dtype=torch.long)
    with torch.no_grad(), PeakBytes() as live:
        body(input_ids=ids, **more)
    assert activations.evaluation_peak(found, rows, 32, torch.bfloat16) == pytest.approx(live.peak, rel=0.1)
    if rank:
        schemes.select(model, "lora", lora_rank=rank, head=head_of)
    with PeakBytes() as live:
        states = body(input_ids=ids, **more).last_hidden_state
        between = live.now
        states.float().sum().backward()
    held = activations.backpropagation(found, rows, 32, torch.bfloat16, rank)
    gradients = 0 if not rank else sum(p.nbytes for p in model.parameters() if p.requires_grad)
    gradients = gradients or sum(p.nbytes for p in body.parameters())
    assert held.activations == pytest.approx(between, rel=0.1)
    assert max(held.activations, gradients) + held.temporary == pytest.approx(live.peak, rel=0.1)
