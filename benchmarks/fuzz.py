"""Mutated inputs of everything that reads bytes from outside: how many are read, refused in one line, or neither.

python benchmarks/fuzz.py                       # 10,000 a reader
python benchmarks/fuzz.py --reader gguf --count 100

Input number i of a reader is a function of the seed, the reader's name and i; a failure is repeated with --first i --count 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from record import save

from zerograd.machine import environment

sys.path.insert(0, str(Path(__file__).parent.parent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", nargs="+", help="only these")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="save the result under this name")
    parsed = parser.parse_args()
    environment.prepare()
    warnings.simplefilter("ignore")
    import torch
    import transformers

    from tests.properties.readers import READ, REFUSED, mutated, outcome, readers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryDirectory() as folder:
        for name, reader in readers(Path(place)).items():
            if parsed.reader and name not in parsed.reader:
                continue
            counts, failed = Counter[str](), {}
            for number in range(parsed.first, parsed.first + parsed.count):
                draw = random.Random(f"{parsed.seed} {name} {number}")
                said = outcome(reader, mutated(draw.choice(reader.wholes), draw), Path(folder))
                counts[said if said in (READ, REFUSED) else "failed"] += 1
                if said not in (READ, REFUSED):
                    failed[number] = said
            rows[name] = {**counts, "failures": failed}
            print(f"{name:14} read {counts[READ]:6,}  refused {counts[REFUSED]:6,}  failed {counts['failed']:3,}", flush=True)
            for number, said in list(failed.items())[:10]:
                print(f"  {number}: {said[:300]}", flush=True)
    if parsed.name:
        print(save(parsed.name, {"count": parsed.count, "seed": parsed.seed, "rows": rows}))


if __name__ == "__main__":
    main()
