"""Numbers a second, by family, back end and threads, beside the machine's copy rate and torch's normal_.

A fused add writes `w + c z` into a chunk that stays in cache, or into a whole tensor; an update reads and writes the tensor.

python benchmarks/noise.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from record import save

from zerograd.machine import environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--name", default="noise")
    parsed = parser.parse_args()
    environment.prepare()
    import torch

    rows = []
    for threads in parsed.threads:
        torch.set_num_threads(threads)
        rates = measure(parsed.rows, parsed.columns, parsed.rounds)
        for name, rate in rates.items():
            row = {"threads": threads, "what": name, "numbers_per_second": rate, "over_copy": rate / rates["copy"]}
            rows.append(row)
            print(f"{threads} threads  {name:34s} {rate / 1e9:7.3f} G/s  {row['over_copy']:6.2f} of the copy rate", flush=True)
    print(save(parsed.name, {"shape": [parsed.rows, parsed.columns], "rows": rows}))


def measure(rows: int, columns: int, rounds: int) -> dict[str, float]:
    """Numbers a second of each kind of work over one float32 matrix, all kinds in turn."""
    import torch

    from zerograd.noise import Address, compiled, reference, split

    weight, out = torch.randn(rows, columns), torch.empty(rows, columns)
    high, low = split(weight)
    at, address = torch.arange(rows), Address(1, 2, 0, 3)
    few = slice(0, max(1, (1 << 17) // columns))
    chunk = [torch.empty_like(weight[few]) for _ in range(2)]

    def both_signs(family: str) -> None:
        for _ in range(64):
            compiled.perturb(chunk, [1e-3, -1e-3], weight[few], None, family, address, at[few], 0)

    left, right = torch.randn(32, rows), torch.randn(32, columns)
    work: dict[str, tuple[Callable[[], Any], int]] = {
        "copy": (lambda: out.copy_(weight), weight.numel()),
        "torch normal_": (lambda: out.normal_(), weight.numel()),
    }
    for family in ("rademacher", "gaussian"):
        chosen = (family, address, at, 0)
        work |= {
            f"{family} fill": (lambda f=family: compiled.fill(out[None], f, address, [0], at, 0), weight.numel()),
            f"{family} add": (lambda c=chosen: compiled.perturb([out], [1e-3], weight, None, *c), weight.numel()),
            f"{family} add, both signs in cache": (lambda f=family: both_signs(f), 64 * chunk[0].numel()),
            f"{family} update": (lambda f=family: compiled.update(weight, None, f, [address], [1e-9], 1.0, None), weight.numel()),
            f"{family} update, split": (
                lambda f=family: compiled.update(high, low, f, [address], [1e-9], 1.0, None),
                weight.numel(),
            ),
            f"{family} fill, torch reference": (
                lambda f=family: reference.fill(out[None, :512], f, address, [0], at[:512], 0),
                512 * columns,
            ),
        }
    work |= {
        "update of bfloat16, rounded at random": (
            lambda: compiled.update(high, None, "rademacher", [address], [1e-9], 1.0, address),
            weight.numel(),
        ),
        "32 products of low rank, update": (
            lambda: compiled.update_low_rank(weight, None, left, right, 1.0, None, 0),
            weight.numel(),
        ),
        "1 product of low rank, update": (
            lambda: compiled.update_low_rank(weight, None, left[:1], right[:1], 1.0, None, 0),
            weight.numel(),
        ),
        "1 product of low rank, update, split": (
            lambda: compiled.update_low_rank(high, low, left[:1], right[:1], 1.0, None, 0),
            weight.numel(),
        ),
    }
    taken: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, (run, _) in work.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return {name: count / statistics.median(taken[name][1:]) for name, (_, count) in work.items()}


if __name__ == "__main__":
    main()
