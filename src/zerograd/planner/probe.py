"""What this machine gives a run, measured: `python -m zerograd.planner.probe JSON` prints one JSON object.

A process of its own imports what a run imports, tells what is resident then, and times matrix products and a copy on as many
threads as the run would have. With the libraries loaded that is a second or two, and a few where a core makes less than 10 GFLOP/s.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from zerograd.machine import environment

environment.prepare()

import torch  # noqa: E402

from zerograd.machine import memory  # noqa: E402

SECONDS = 0.7
"""Of each measurement."""

ROWS = 4096
"""Of a product: the tokens of a pass."""

MOST = 2e10
"""FLOP of a product on the CPU, however wide the model: at the whole width of 8 billion parameters each would have 5.5e11."""

COPIED = 256 << 20
"""Bytes that are copied, more than caches hold."""


def resident() -> int:
    """Bytes of this process once the libraries of a run are loaded."""
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    import zerograd.tune.run  # noqa: F401

    memory.reset_peak()
    return memory.peak_bytes()


def flops(hidden: int, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of products of a pass with a matrix of a model's width."""
    out = outputs(hidden, device)
    x, weight = (torch.ones(rows, hidden, dtype=dtype, device=device) for rows in (ROWS, out))
    return 2 * ROWS * hidden * out * _rate(lambda: torch.nn.functional.linear(x, weight), device)


def outputs(hidden: int, device: torch.device) -> int:
    """The columns that a product gives: those of a feed-forward part, of which the CPU makes what MOST allows."""
    return 4 * hidden if device.type != "cpu" else min(4 * hidden, max(1, int(MOST / (2 * ROWS * hidden))))


def bandwidth(device: torch.device) -> float:
    """Bytes/s of a copy, read and written ones."""
    there = torch.ones(COPIED // 4, device=device)
    copy = torch.empty_like(there)
    return 2 * COPIED * _rate(lambda: copy.copy_(there), device)


def _rate(work: Callable[[], object], device: torch.device) -> float:
    """How often a second work is done."""
    work()
    _wait(device)
    start, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < SECONDS or not done:
        work()
        _wait(device)
        done += 1
    return done / elapsed


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()


def main(asked: str) -> None:
    """Measure what is asked for: device, dtype, threads and hidden."""
    of = json.loads(asked)
    torch.set_num_threads(of["threads"])
    device, dtype = torch.device(of["device"]), getattr(torch, of["dtype"])
    found = {"resident": resident()}
    print(json.dumps(found | {"flops": flops(of["hidden"], dtype, device), "bandwidth": bandwidth(device)}))


if __name__ == "__main__":
    main(sys.argv[1])
