"""What a step costs: its time over two forwards that score the same positions, its memory over evaluating as many rows.

Time: a process for each shape and dtype, the methods in turn, CPU and wall seconds as ratios of medians. Memory: each row in three
fresh processes, their median.
All positions are scored: the mean cross entropy of every next token, its normaliser running over the vocabulary in chunks.

python benchmarks/step.py
python benchmarks/step.py --shape 125m-8x64 --json
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from numerics import drift, rounding_walk, update_cosine
from record import fresh, provenance, save

from zerograd.machine import environment


class Shape(NamedTuple):
    """A model of random weights, and what it is evaluated on."""

    model: str
    rows: int
    tokens: int


SHAPES = {
    "125m-1x64": Shape("opt", 1, 64),
    "125m-8x64": Shape("opt", 8, 64),
    "125m-16x256": Shape("opt", 16, 256),
    "150k-8x64": Shape("qwen3", 8, 64),
    "mixture-2m-8x64": Shape("mixture tiny", 8, 64),
    "mixture-500m-8x64": Shape("mixture", 8, 64),
}
WHOLE = ("forward2", "dense", "dense_gaussian", "rank1", "population8", "mezo_published")
PARTS = {"qk": r"\.(q|k)_proj\.", "experts": r"\.experts\."}
"""Parts of a mixture that are trained alone, by the names of their tensors."""

OF_MIXTURES = ("forward2", *(f"{kind}_{part}" for part in PARTS for kind in ("dense", "rank1")))
METHODS = (*WHOLE, *OF_MIXTURES[1:])
LONG = "125m-16x256"
"""Where populations and MeZO as published take minutes and are not measured, nor is memory: its activations are a gigabyte."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves it to torch")
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument("--no-numerics", action="store_true", help="leave out drift and update_cosine")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--name", default="step")
    parser.add_argument("--timed", nargs=2, metavar=("SHAPE", "DTYPE"), help="rows of one shape and dtype, timed in this process")
    parser.add_argument("--one", nargs=3, metavar=("SHAPE", "DTYPE", "METHOD"), help="memory of one row, in this process")
    parsed = parser.parse_args()
    environment.prepare()
    import torch

    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    if parsed.one:
        print(json.dumps(memory_of(*parsed.one)))
        return
    if parsed.timed:
        keep_pages()
        print(json.dumps(list(timed(*parsed.timed, parsed.method, parsed.rounds))))
        return
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "rows": rows}
    for shape in parsed.shape:
        for dtype in parsed.dtype:
            possible = OF_MIXTURES if shape.startswith("mixture") else WHOLE
            slow = ("population8", "mezo_published") if shape == LONG else ()
            wanted = [m for m in parsed.method if m in possible and m not in slow]
            common = ("--threads", str(torch.get_num_threads()))
            for row in fresh(__file__, "--timed", shape, dtype, "--method", *wanted, "--rounds", str(parsed.rounds), *common):
                if not parsed.no_memory and shape != LONG and row["method"] in ("dense", "rank1"):
                    taken = [fresh(__file__, "--one", shape, dtype, row["method"], *common) for _ in range(3)]
                    row |= {name: statistics.median(one[name] for one in taken) for name in taken[0]}
                rows.append(row)
                path = save(parsed.name, result)
                print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
    if not parsed.no_numerics:
        result |= {"drift": drift(), "update_cosine": update_cosine(), "rounding_walk": rounding_walk()}
        path = save(parsed.name, result)
    print(json.dumps(provenance() | result) if parsed.json else path)


def keep_pages() -> None:
    """Let the C library keep what it was given back, for both sides of a ratio.

    By default every tensor of more than 32 MB is mapped anew and its pages fault in one by one: at 16x256 that is 700,000
    faults in two plain forwards, and how many a step has depends on what the process did before. Memory is measured without this.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def timed(shape: str, dtype: str, methods: list[str], rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each method, measured in turn with two plain forwards."""
    import torch

    model, objective, batch = built(shape, dtype)
    weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    parameters = sum(p.numel() for p in model.parameters())

    def two_forwards() -> None:
        with torch.no_grad():
            for _ in range(2):
                objective(batch)

    for method in methods:
        step, forwards, stored = stepper(method, model, objective, batch)
        step()
        two_forwards()
        seconds: dict[str, list[tuple[float, float]]] = {"step": [], "forwards": []}
        for _ in range(rounds):
            for name, run in (("forwards", two_forwards), ("step", step)):
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
        medians = {name: [statistics.median(column) for column in zip(*taken, strict=True)] for name, taken in seconds.items()}
        cpu_forward, wall_forward = (value / 2 for value in medians["forwards"])
        cpu_step, wall_step = medians["step"]
        yield {
            "shape": shape,
            "dtype": dtype,
            "method": method,
            "cpu_ratio": cpu_step / (cpu_forward * forwards),
            "wall_ratio": wall_step / (wall_forward * forwards),
            "over_forwards": forwards,
            "cpu_seconds": cpu_step,
            "wall_seconds": wall_step,
            "forward_cpu_seconds": cpu_forward,
            "forward_wall_seconds": wall_forward,
            "ns_per_parameter": 1e9 * (cpu_step - cpu_forward * forwards) / parameters,
            "parameters": parameters,
            "weight_bytes": weight_bytes,
            "stored_bytes": stored,
        }


def built(shape: str, dtype: str) -> tuple[Any, Callable[[Any], Any], Any]:
    """(model, objective, batch) of a shape: random weights, the same every time."""
    import torch
    import transformers

    from zerograd.text.models.head import log_likelihoods

    kind, rows, tokens = SHAPES[shape]
    torch.manual_seed(0)
    config: Any
    if kind == "opt":
        config = transformers.OPTConfig(vocab_size=50272, dropout=0.0, attention_dropout=0.0)
    elif kind.startswith("mixture"):
        sizes = {"hidden_size": 64, "moe_intermediate_size": 128, "num_hidden_layers": 4, "head_dim": 16, "num_experts": 8}
        if kind == "mixture":  # 0.5 B, of which 0.15 are met by a token
            sizes = {"hidden_size": 768, "moe_intermediate_size": 1024, "num_hidden_layers": 12, "head_dim": 64, "num_experts": 16}
        heads = {"num_attention_heads": sizes["hidden_size"] // sizes["head_dim"], "num_key_value_heads": 4}
        more = {"num_experts_per_tok": 2, "vocab_size": 32000 if kind == "mixture" else 4096}
        config = transformers.Qwen3MoeConfig(**sizes, **heads, **more)
    else:
        config = transformers.Qwen3Config(
            vocab_size=151936,
            hidden_size=512,
            intermediate_size=1536,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=64,
            tie_word_embeddings=True,
        )
    model = transformers.AutoModelForCausalLM.from_config(config).eval().to(getattr(torch, dtype))
    ids = torch.randint(4, config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(1))

    def objective(ids: Any) -> Any:
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        predicting = hidden[:, :-1].reshape(-1, hidden.shape[-1])
        likely = log_likelihoods(predicting, model.get_output_embeddings(), ids[:, 1:].reshape(-1))
        return -likely.view(len(ids), -1).mean(1)

    return model, objective, ids


def stepper(method: str, model: Any, objective: Callable[[Any], Any], batch: Any) -> tuple[Callable[[], Any], int, int]:
    """(a step, how many forwards it is held against, bytes of what it keeps of the weights)."""
    import torch

    import zerograd as zg

    if method == "forward2":

        def twice() -> None:
            with torch.no_grad():
                for _ in range(2):
                    objective(batch)

        return twice, 2, 0
    if method == "mezo_published":
        model = copy.deepcopy(model)
        return published(model, batch), 2, 0
    options: dict[str, Any] = {"lr": 1e-6, "self_check": False}
    method, _, part = method.partition("_") if method.split("_")[-1] in PARTS else (method, "", "")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not part or re.search(PARTS[part], name) is not None)
    opt: Any = {
        "dense": lambda: zg.optim.MeZO(model, **options),
        "dense_gaussian": lambda: zg.optim.MeZO(model, distribution="gaussian", **options),
        "rank1": lambda: zg.optim.PerExample(model, standardised=len(batch) > 1, **options),
        "population8": lambda: zg.optim.FZOO(model, directions=8, **options),
    }[method]()
    opt.attach(objective, batch)
    kept = sum(tensor.nbytes for space in opt.spaces for tensor in space.saved().values())
    return (lambda: opt.step(objective, batch)), opt.branches, kept


def published(model: Any, batch: Any, lr: float = 1e-6, eps: float = 1e-3) -> Callable[[], None]:
    """MeZO as its paper's program does it: in place, torch's generator seeded anew for each of four passes over the weights."""
    import torch
    import torch.nn.functional as F

    parameters = list(model.parameters())
    seeds = torch.Generator().manual_seed(0)

    def loss() -> float:
        logits = model(input_ids=batch, use_cache=False).logits
        return float(F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), batch[:, 1:].reshape(-1)))

    def move(seed: int, scale: float) -> None:
        torch.manual_seed(seed)
        for p in parameters:
            z = torch.normal(mean=0, std=1, size=p.data.size(), device=p.data.device, dtype=p.data.dtype)
            p.data = p.data + scale * z

    def step() -> None:
        seed = int(torch.randint(10**9, (), generator=seeds))
        with torch.no_grad():
            move(seed, eps)
            plus = loss()
            move(seed, -2 * eps)
            minus = loss()
            move(seed, eps)
            move(seed, -lr * (plus - minus) / (2 * eps))

    return step


def memory_of(shape: str, dtype: str, method: str) -> dict[str, int]:
    """Peak bytes of a step over those of evaluating as many rows: resident in the process, and held by tensors."""
    import torch

    from zerograd.evaluate.micro_batch import PeakBytes
    from zerograd.machine import memory

    model, objective, batch = built(shape, dtype)
    step, forwards, _ = stepper(method, model, objective, batch)
    expanded = torch.cat([batch] * forwards)

    def evaluate() -> None:
        with torch.no_grad():
            objective(expanded)

    peaks = {}
    for name, run in (("evaluation", evaluate), ("step", step)):
        run()
        memory.reset_peak()
        run()
        run()
        peaks[name] = memory.peak_bytes()
        with PeakBytes() as live:
            run()
        peaks[name + "_tensors"] = live.peak
    return {
        "extra_bytes": peaks["step"] - peaks["evaluation"],
        "extra_tensor_bytes": peaks["step_tensors"] - peaks["evaluation_tensors"],
        "evaluation_bytes": peaks["evaluation"],
    }


if __name__ == "__main__":
    main()
