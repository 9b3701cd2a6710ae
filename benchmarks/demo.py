"""The demo over tasks and seeds, in fresh processes: gains, intervals, time and memory.

python benchmarks/demo.py --seeds 3 --minutes 5
"""

from __future__ import annotations

import argparse
import tempfile

from record import fresh, save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["sentiment-movies", "sentiment-products", "sentiment-tweets"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--name", default="demo")
    parsed, more = parser.parse_known_args()
    rows = []
    for task in parsed.tasks:
        for seed in range(parsed.seeds):
            with tempfile.TemporaryDirectory() as folder:
                flags = ["--task", task, "--seed", str(seed), "--minutes", str(parsed.minutes), "--out", folder + "/run", "--json"]
                row = fresh("-m", "zerograd", "tune", *flags, *more)
            rows.append({k: v for k, v in row.items() if k != "run"})
            gain = 100 * (row["accuracy_after"] - row["accuracy_before"])
            over = 100 * (row["accuracy_after"] - row["accuracy_calibrated"])
            low, high = (100 * bound for bound in row["ci_gain"])
            print(f"{task} seed {seed}: gain {gain:+.2f} ({low:+.2f} .. {high:+.2f}), over threshold {over:+.2f}", flush=True)
            print(save(parsed.name, {"settings": more, "minutes": parsed.minutes, "rows": rows}))


if __name__ == "__main__":
    main()
