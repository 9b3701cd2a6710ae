"""Tiny models of many kinds, their tokenizer of characters, and tasks for them."""

from __future__ import annotations

import string

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from zerograd.text.data.tasks import Example, Task, TaskSpec


def characters() -> PreTrainedTokenizerFast:
    """A real tokenizer of one token a character."""
    vocabulary = {c: i for i, c in enumerate(["<pad>", *string.printable])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 104}
TEXTS = ["good film", "bad", "so so, really", "fine"]


def tokenizer(mask: bool = False):
    made = characters()
    if mask:
        made.add_special_tokens({"mask_token": "<mask>", "eos_token": "<eos>"})
    return made


def rows(labels: int) -> list[Example]:
    return [Example(str(i), {"text": text}, (i % labels,)) for i, text in enumerate(TEXTS)]


def options_task(options=("n", "p"), prompt="{{ text }}=") -> Task:
    return Task(TaskSpec("letters", prompt=prompt, options=options, label="label"), rows(len(options)), rows(2), rows(2))


def answer_task() -> Task:
    examples = [Example(e.id, e.row, (), (), (str(len(e.row["text"])) + " signs",)) for e in rows(2)]
    return Task(TaskSpec("count", prompt="{{ text }}=", answer="n", stop="!"), examples, examples, examples)


def choice_task() -> Task:
    spec = TaskSpec("end", prompt="{{ text }}", options=(" {{ a }}", " {{ b }}"), label="l")
    found = Task(spec).read([{"text": text, "a": "no", "b": "yes it is", "l": i % 2} for i, text in enumerate(TEXTS)], "d")
    return Task(spec, found, found, found)


def bert() -> BertForMaskedLM:
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(**SIZE, max_position_embeddings=64, initializer_range=0.2, pad_token_id=0)).eval()


def roberta(kind=RobertaForMaskedLM, **more):
    torch.manual_seed(0)
    return kind(RobertaConfig(**SIZE, max_position_embeddings=66, initializer_range=0.2, pad_token_id=0, **more)).eval()


def t5(tied: bool = True) -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=104, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0, tie_word_embeddings=tied
    )
    return T5ForConditionalGeneration(config).eval()


def bart() -> BartForConditionalGeneration:
    torch.manual_seed(0)
    size = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = BartConfig(
        vocab_size=104,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        init_std=0.2,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
        **size,
    )
    return BartForConditionalGeneration(config).eval()


def gemma() -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    config = Gemma2Config(**SIZE, num_key_value_heads=2, head_dim=8, initializer_range=0.5, final_logit_softcapping=1.0)
    return Gemma2ForCausalLM(config).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=104, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2)).eval()


def opt() -> OPTForCausalLM:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 16}
    return OPTForCausalLM(OPTConfig(vocab_size=104, max_position_embeddings=64, init_std=0.2, **size)).eval()


def classifier() -> RobertaForSequenceClassification:
    return roberta(RobertaForSequenceClassification, num_labels=2)


def pooled() -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    return LlamaForSequenceClassification(LlamaConfig(**SIZE, num_labels=2, pad_token_id=0, initializer_range=0.2)).eval()
