"""Perturbed generation against plain generation of as many answers: CPU time, bytes, and whether the tokens are the right ones.

python benchmarks/generation.py --json

Each perturbed row has a direction and a sign of its own, of rank 1; plain and perturbed generation alternate in one process.
Answers do not end early, so that both make as many tokens. Equality is of float32 rows with those that a really perturbed copy
writes alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from typing import Any

import torch
from record import provenance, save

from zerograd.directions import Directions, Draws, LowRank
from zerograd.evaluate.micro_batch import PeakBytes
from zerograd.machine import environment
from zerograd.queries.plan import example_pairs
from zerograd.spaces import Space, collect
from zerograd.text.generation import Generator
from zerograd.text.models import loading, schemes
from zerograd.text.sampling import Sampling

RADIUS = 0.02
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64, "max_position_embeddings": 128}
GROUPED = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 16])
    parser.add_argument("--schemes", nargs="+", default=["full", "qk"])
    parser.add_argument("--prompt", type=int, default=40)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--equal", type=int, default=64, help="rows of the demo whose tokens are compared; 0 for none")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--name", help="save the result under this name")
    parsed = parser.parse_args()
    environment.prepare()
    torch.set_num_threads(parsed.threads)
    torch.set_grad_enabled(False)
    rows = []
    for scheme in parsed.schemes:
        loaded = loading.load(loading.DEMO, torch.bfloat16)
        spaces = spaces_of(schemes.select(loaded.model, scheme))
        for count in parsed.rows:
            rows.append(timed(loaded, spaces, scheme, count, parsed))
            print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    equal: dict[str, Any] = {"architectures": {name: agreeing(make()) for name, make in ARCHITECTURES.items()}}
    print(equal, flush=True)
    if parsed.equal:
        loaded = loading.load(loading.DEMO, torch.float32)
        spaces = spaces_of(schemes.select(loaded.model, "full"))
        prompts = prompts_of(loaded.model, parsed.equal // 2, parsed.prompt)
        equal["float32"] = compared(loaded.model, spaces, prompts, Sampling(parsed.new), (loaded.model.config.eos_token_id,))
        print("float32", equal["float32"], flush=True)
    result = {"rows": rows, "equal": equal}
    if parsed.name:
        print(save(parsed.name, result))
    if parsed.json:
        print(json.dumps(provenance() | result))


def spaces_of(model: Any) -> list[Space]:
    spaces = collect(model, None)
    for space in spaces:
        space.set_scale(relative=True)
    return spaces


def prompts_of(model: Any, count: int, tokens: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(10, model.config.vocab_size, (count, tokens), generator=generator).tolist()


def timed(loaded: Any, spaces: list[Space], scheme: str, count: int, parsed: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds of plain and perturbed generation of as many rows, alternating; the first round of each is not counted."""
    model, sampling = loaded.model, Sampling(parsed.new)
    prompts, generator = prompts_of(model, count // 2, parsed.prompt), Generator(model, 0, ())
    directions, plan = Draws(LowRank("rademacher"), 0), example_pairs(count // 2)
    radii = {space.id: RADIUS for space in spaces}
    seconds: dict[str, list[float]] = {"plain": [], "perturbed": []}
    for number in range(parsed.rounds + 1):
        start = time.process_time()
        generator.answers(prompts * 2, sampling, rows=count)
        middle = time.process_time()
        generator.perturbed(prompts, sampling, plan, spaces, directions.at(number), radii, examples=count)
        if number:
            seconds["plain"].append(middle - start)
            seconds["perturbed"].append(time.process_time() - middle)
    peaks = []
    for work in (
        lambda: generator.answers(prompts * 2, Sampling(4), rows=count),
        lambda: generator.perturbed(prompts, Sampling(4), plan, spaces, directions.at(0), radii, examples=count),
    ):
        with PeakBytes() as live:
            work()
        peaks.append(live.peak)
    ratios = [one / other for one, other in zip(seconds["perturbed"], seconds["plain"], strict=True)]
    plain, perturbed = (statistics.median(seconds[name]) for name in ("plain", "perturbed"))
    return {
        "model": loading.DEMO, "dtype": "bfloat16", "scheme": scheme, "rows": count, "prompt": parsed.prompt, "new": parsed.new,
        "plain_cpu_s": plain, "cpu_s": perturbed, "ratio": statistics.median(ratios), "extra_bytes": peaks[1] - peaks[0],
        "held_bytes": generator.held_bytes, "tokens_per_s": count * parsed.new / perturbed,
    }  # fmt: skip


def _llama(**more: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**GROUPED, **more))


def _made(name: str, config: dict[str, Any], kind: str = "ForCausalLM", of: str = "Config") -> Any:
    import transformers

    return getattr(transformers, name + kind)(getattr(transformers, name + of)(**config))


ARCHITECTURES: dict[str, Any] = {
    "Llama": _llama,
    "GPT-2": lambda: _made("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64}, "LMHeadModel"),
    "OPT": lambda: _made("OPT", {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 16, "pad_token_id": 1}),
    "Qwen3": lambda: _made("Qwen3", {**GROUPED, "head_dim": 8}),
    "Gemma 3": lambda: _made(
        "Gemma3", {**GROUPED, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}, of="TextConfig"
    ),
    "Mistral, sliding": lambda: _made("Mistral", {**GROUPED, "sliding_window": 8}),
    "Mixtral, eager": lambda: _made("Mixtral", {**GROUPED, "num_local_experts": 4, "experts_implementation": "eager"}),
    "Mixtral, grouped": lambda: _made("Mixtral", {**GROUPED, "num_local_experts": 4}),
    "Mamba": lambda: _made("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "state_size": 8}),
    "GPT-NeoX": lambda: _made("GPTNeoX", {**SIZES, "intermediate_size": 48}),
    "T5": lambda: _made(
        "T5",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 64, "decoder_start_token_id": 0},
        "ForConditionalGeneration",
    ),
}


def agreeing(model: Any) -> list[int]:
    """[tokens that agree, all tokens] of a tiny model with random weights, with prompts of several lengths."""
    torch.manual_seed(0)
    for parameter in model.eval().parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 2 / parameter[0].numel() ** 0.5)
    prompts = [one[: 2 + i % 5] for i, one in enumerate(prompts_of(model, 8, 8))]
    return compared(model, spaces_of(model), prompts, Sampling(32, 1.0), ())


def compared(model: Any, spaces: list[Space], prompts: list[list[int]], sampling: Sampling, ends: tuple[int, ...]) -> list[int]:
    """[tokens that agree, all tokens] of perturbed rows and of really perturbed copies, which write each row alone."""
    decoder = bool(model.config.is_encoder_decoder)
    radii, plan = {space.id: RADIUS for space in spaces}, example_pairs(len(prompts))
    directions: Directions = Draws(LowRank("rademacher"), 0).at(7)
    mine = Generator(model, 0, ends, decoder).perturbed(prompts, sampling, plan, spaces, directions, radii)
    twin = copy.deepcopy(model)
    parameters = dict(twin.named_parameters(remove_duplicate=False))
    same = count = 0
    for branch, sign in enumerate((1.0, -1.0)):
        for i, prompt in enumerate(prompts):
            for space in spaces:
                z = directions.z(space, i)
                parameters[space.name].copy_(space.exact().view(z.shape) + z * (sign * RADIUS * space.scale))
            alone = Generator(twin, 0, ends, decoder).perturbed(
                [prompt], sampling, example_pairs(1), [], directions, {}, numbers=[i]
            )[0][0]
            count += max(len(alone), len(mine[branch][i]))
            same += sum(one == other for one, other in zip(alone, mine[branch][i], strict=False))
    return [same, count]


if __name__ == "__main__":
    main()
