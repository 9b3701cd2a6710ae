"""Answers in free text: greedy generation, many rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from zerograd.text.data.tasks import Example
from zerograd.text.scoring import Scorer


def generate(
    scorer: Scorer,
    examples: Sequence[Example],
    new_tokens: int = 50,
    rows: int = 16,
    listen: Callable[[float], None] = lambda done: None,
) -> list[str]:
    """What the model answers to each example, in the order given, without what ends an answer.

    new_tokens: the most of an answer. rows: examples at a time, of like length. listen hears the share that is done. Raises
    ValueError for more new tokens than a row leaves for its answer.
    """
    if new_tokens > scorer.encoder.most:
        say = f"new_tokens is {new_tokens}, and a row has {scorer.encoder.room} tokens in all, half of them for its answer"
        raise ValueError(f"{say}; give at most {scorer.encoder.most}, or a larger --max-tokens")
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
    filled = [([pad] * (width - len(p)) + p) if left else (p + [pad] * (width - len(p))) for p in prompts]
    seen = [([0] * (width - len(p)) + [1] * len(p)) if left else ([1] * len(p) + [0] * (width - len(p))) for p in prompts]
    own = scorer.model.generation_config
    end = own.eos_token_id if own.eos_token_id is not None else scorer.tokenizer.eos_token_id
    stop = scorer.task.spec.stop
    settings = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, num_beams=1, eos_token_id=end, pad_token_id=pad)
    settings.decoder_start_token_id = own.decoder_start_token_id

    def stopped(ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
        said = scorer.tokenizer.batch_decode(ids[:, width:] if left else ids, skip_special_tokens=True)
        return torch.tensor([stop in text for text in said], device=ids.device)

    with torch.no_grad():
        made = scorer.model.generate(
            input_ids=torch.tensor(filled, device=scorer.device),
            attention_mask=torch.tensor(seen, device=scorer.device),
            generation_config=settings,
            stopping_criteria=StoppingCriteriaList([stopped] if stop else []),
        )
    texts = scorer.tokenizer.batch_decode(made[:, width:] if left else made, skip_special_tokens=True)
    return [(text.split(stop)[0] if stop else text).strip() for text in texts]
