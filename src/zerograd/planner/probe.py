"""A measurement of this machine: `python -m zerograd.planner.probe JSON` prints one JSON object.

A fresh process imports the libraries of a run, measures its resident memory, and times matrix products and a copy on as
many threads as the run would use. The timing takes a second or two, a few on a core below 10 GFLOP/s.
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

PROBE_SECONDS = 0.7
"""Seconds of each measurement."""

PRODUCT_ROWS = 4096
"""Rows of a measured product: the tokens of a pass."""

MAX_PRODUCT_FLOP = 2e10
"""The most FLOP of a measured product on the CPU; at the full width of 8 billion parameters a product has 5.5e11."""

COPIED_BYTES = 256 << 20
"""Bytes of a measured copy, more than fit in caches."""


def resident_bytes() -> int:
    """Resident bytes of this process with the libraries of a run."""
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    import zerograd.tune.run  # noqa: F401

    memory.reset_peak()
    return memory.peak_bytes()


def flops(hidden: int, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of matrix products with PRODUCT_ROWS rows and a model's width."""
    out = output_columns(hidden, device)
    x, weight = (torch.ones(rows, hidden, dtype=dtype, device=device) for rows in (PRODUCT_ROWS, out))
    return 2 * PRODUCT_ROWS * hidden * out * _calls_per_second(lambda: torch.nn.functional.linear(x, weight), device)


def output_columns(hidden: int, device: torch.device) -> int:
    """Output columns of a measured product: four times the width, on the CPU at most what MAX_PRODUCT_FLOP allows."""
    return 4 * hidden if device.type != "cpu" else min(4 * hidden, max(1, int(MAX_PRODUCT_FLOP / (2 * PRODUCT_ROWS * hidden))))


def bandwidth(device: torch.device) -> float:
    """Bytes/s of a copy, counting reads and writes."""
    source = torch.ones(COPIED_BYTES // 4, device=device)
    copy = torch.empty_like(source)
    return 2 * COPIED_BYTES * _calls_per_second(lambda: copy.copy_(source), device)


def _calls_per_second(work: Callable[[], object], device: torch.device) -> float:
    """Calls of work() per second."""
    work()
    _wait(device)
    start, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < PROBE_SECONDS or not done:
        work()
        _wait(device)
        done += 1
    return done / elapsed


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()


def main(request: str) -> None:
    """Print the measurements. request: JSON with device, dtype, threads and hidden."""
    wanted = json.loads(request)
    torch.set_num_threads(wanted["threads"])
    device, dtype = torch.device(wanted["device"]), getattr(torch, wanted["dtype"])
    measured = {"resident": resident_bytes()}
    print(json.dumps(measured | {"flops": flops(wanted["hidden"], dtype, device), "bandwidth": bandwidth(device)}))


if __name__ == "__main__":
    main(sys.argv[1])
