"""Products in bfloat16 as torch does them, over the same products through `evaluate.half`: python benchmarks/half.py

CPU seconds as ratios of medians, the two in turn on one thread. Where the CPU has instructions for bfloat16, zerograd leaves the
products to torch, and the ratio says what that saves.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import record
import torch
import torch.nn.functional as F

from zerograd.evaluate import half

SHAPES = [(tokens, width, out) for width, out in ((576, 1536), (768, 3072)) for tokens in (16, 64, 512, 2048)]
"""(tokens, input width, output width)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--name", default="half")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    has_instructions, half.IS_SLOW = not half.IS_SLOW, True
    rows = []
    for shape in SHAPES:
        tokens, width, out = shape
        x, weight = torch.randn(tokens, width).bfloat16(), torch.randn(out, width).bfloat16()
        plain, cast = seconds([lambda x=x, w=weight: F.linear(x, w), lambda x=x, w=weight: half.linear(x, w)], given.rounds)
        rows.append(
            {"tokens": tokens, "width": width, "out": out, "torch_ms": 1e3 * plain, "cast_ms": 1e3 * cast, "ratio": plain / cast}
        )
        print(f"{tokens:5} x {width} x {out}: {1e3 * plain:8.2f} ms by torch, {1e3 * cast:8.2f} ms cast, ratio {plain / cast:.2f}")
    payload = {"cpu_has_bfloat16": has_instructions, "rows": rows}
    print(record.save(given.name, payload))
    if given.json:
        print(json.dumps(payload))


def seconds(work: list[Callable[[], torch.Tensor]], rounds: int) -> list[float]:
    """Median CPU seconds of each function, called in turn."""
    taken: list[list[float]] = [[] for _ in work]
    for _ in range(rounds + 1):
        for function, found in zip(work, taken, strict=True):
            start = time.process_time()
            function()
            found.append(time.process_time() - start)
    return [statistics.median(found[1:]) for found in taken]


if __name__ == "__main__":
    main()
