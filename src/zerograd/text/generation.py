"""Answers in free text: greedy generation, in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from zerograd.evaluate import half
from zerograd.text.data.tasks import Example
from zerograd.text.scoring import Scorer


def generate(
    scorer: Scorer,
    examples: Sequence[Example],
    new_tokens: int = 50,
    rows: int = 16,
    listen: Callable[[float], None] = lambda done: None,
) -> list[str]:
    """The model's answer to each example, in the order of the examples, without the end of an answer.

    new_tokens: the longest answer. rows: examples of a batch, which have similar lengths. listen: takes the share of
    the work that is done.
    Raises ValueError where a row has less room than new_tokens for its answer.
    """
    if new_tokens > scorer.encoder.max_answer_tokens:
        problem = (
            f"new_tokens is {new_tokens}, and a row has {scorer.encoder.max_tokens} tokens in all, half of them for its answer"
        )
        raise ValueError(f"{problem}; give at most {scorer.encoder.max_answer_tokens}, or a larger --max-tokens")
    prompts = [scorer.encoder.prompt_ids(e, new_tokens) for e in examples]
    by_length = sorted(range(len(examples)), key=lambda i: len(prompts[i]))
    answers = [""] * len(examples)
    for first in range(0, len(by_length), rows):
        listen(first / len(by_length))
        chosen = by_length[first : first + rows]
        for i, answer in zip(chosen, _answers(scorer, [prompts[i] for i in chosen], new_tokens), strict=True):
            answers[i] = answer
    return answers


def _answers(scorer: Scorer, prompts: Sequence[list[int]], new_tokens: int) -> list[str]:
    from transformers import GenerationConfig, StoppingCriteriaList

    pad, width = scorer.encoder.pad, max(map(len, prompts))
    left = scorer.head != "seq2seq"
    padded = [([pad] * (width - len(p)) + p) if left else (p + [pad] * (width - len(p))) for p in prompts]
    attention = [([0] * (width - len(p)) + [1] * len(p)) if left else ([1] * len(p) + [0] * (width - len(p))) for p in prompts]
    defaults = scorer.model.generation_config
    end = defaults.eos_token_id if defaults.eos_token_id is not None else scorer.tokenizer.eos_token_id
    stop = scorer.task.spec.stop
    settings = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, num_beams=1, eos_token_id=end, pad_token_id=pad)
    settings.decoder_start_token_id = defaults.decoder_start_token_id

    def stopped(ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
        texts = scorer.tokenizer.batch_decode(ids[:, width:] if left else ids, skip_special_tokens=True)
        return torch.tensor([stop in text for text in texts], device=ids.device)

    with torch.no_grad(), half.fast_products():
        generated = scorer.model.generate(
            input_ids=torch.tensor(padded, device=scorer.device),
            attention_mask=torch.tensor(attention, device=scorer.device),
            generation_config=settings,
            stopping_criteria=StoppingCriteriaList([stopped] if stop else []),
        )
    texts = scorer.tokenizer.batch_decode(generated[:, width:] if left else generated, skip_special_tokens=True)
    return [(text.split(stop)[0] if stop else text).strip() for text in texts]
