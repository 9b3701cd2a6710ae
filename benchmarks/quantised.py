"""What packed matrices cost: bytes, decoding, steps on gains, and memory, a format at a time and for the demo's file.

Time: CPU seconds as ratios in one process, one thread, activations in bfloat16; the matrices of a small Llama of random blocks.
`packed_ratio` is a forward over that of the same model unpacked to bfloat16; `step_ratio` a two-sided shared step on the gains of
all matrices over two packed forwards; `step_ratio_per_example` a rank-one one of each example's own, on queries and keys of the
upper half, and `step_ratio_per_example_all` on all matrices. Memory: the demo's file, in fresh processes.

python benchmarks/quantised.py --json
python benchmarks/quantised.py --format Q4_1 Q6_K --rounds 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import torch
from record import fresh, provenance, save

import zerograd as zg
from zerograd.evaluate import half
from zerograd.evaluate.micro_batch import PeakBytes
from zerograd.machine import environment, memory
from zerograd.quantised import FORMATS, Format, Gain, models, pack
from zerograd.quantised.gguf import header
from zerograd.quantised.matrix import Packed
from zerograd.quantised.write import write
from zerograd.spaces import collect
from zerograd.text.models import loading
from zerograd.text.models.head import log_likelihoods

SHAPES = {"8x64": (8, 64), "1x64": (1, 64)}
SIZES = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 4}
LAYERS, VOCABULARY = 4, 4096
DEMO_ROWS, DEMO_TOKENS = 32, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-steps", action="store_true", help="leave out forwards and steps")
    parser.add_argument("--no-memory", action="store_true", help="leave out the demo's memory")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--name", help="save the result under this name")
    parser.add_argument("--one", choices=MEMORY, help="one measurement of memory, in this process")
    parsed = parser.parse_args()
    environment.prepare()
    torch.set_num_threads(1)
    if parsed.one:
        print(json.dumps(MEMORY[parsed.one]()))
        return
    rows = []
    for name in parsed.format:
        rows.append(of_format(FORMATS[name], parsed.rounds, steps=not parsed.no_steps))
        print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    result: dict[str, Any] = {"threads": 1, "slow_bfloat16": half.IS_SLOW, "rows": rows}
    if not parsed.no_memory:
        result["demo"] = of_demo()
        print(result["demo"])
        for row in rows:  # of the one file that there is
            row |= {name: result["demo"][name] for name in ("load_peak_bytes", "train_peak_bytes", "inference_peak_bytes")}
    if parsed.name:
        print(save(parsed.name, result))
    if parsed.json:
        print(json.dumps(provenance() | result))


def of_format(format: Format, rounds: int, steps: bool) -> dict[str, Any]:
    """A format's row. steps: whether forwards and steps are timed."""
    model, unpacked = built(format, packed=True), built(format, packed=False)
    matrices = {id(module.weight): module for module in model.modules() if isinstance(module, Packed)}
    weights = sum(len(m.weight) * (m.weight.shape[1] // format.bytes * format.weights) for m in matrices.values())
    row: dict[str, Any] = {
        "format": format.name,
        "bytes_per_parameter": sum(m.weight.nbytes for m in matrices.values()) / weights,
        "gain_bytes_per_parameter": 4 / format.weights,
        "unpacking_ns": unpacking_ns(format, next(iter(matrices.values())), rounds),
        "equal": decodes_as_the_library(format, next(iter(matrices.values()))),
        "written": None,
        "skipped": None,
    }
    for shape, (examples, tokens) in SHAPES.items() if steps else ():
        ids = torch.randint(4, VOCABULARY, (examples, tokens), generator=torch.Generator().manual_seed(1))
        own, other = objective_of(model), objective_of(unpacked)
        suffix = "" if shape == "8x64" else f"_{shape}"

        def plain(objective: Callable[[Any], Any] = own, ids: torch.Tensor = ids, times: int = 1) -> None:
            with torch.no_grad(), half.fast_products():
                for _ in range(times):
                    objective(ids)

        row[f"packed_ratio{suffix}"] = ratio(plain, lambda plain=plain, other=other: plain(other), rounds)
        row[f"step_ratio{suffix}"] = step_ratio(model, ids, "all", False, plain, rounds)
        if examples > 1:
            row["step_ratio_per_example"] = step_ratio(model, ids, "qk", True, plain, rounds)
            row["step_ratio_per_example_all"] = step_ratio(model, ids, "all", True, plain, rounds)
    return row


def ratio(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> float:
    """CPU seconds of one over those of the other, in turn, medians."""
    first(), second()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for run, taken in zip((second, first), reversed(seconds), strict=True):
            began = time.process_time()
            run()
            taken.append(time.process_time() - began)
    return statistics.median(seconds[0]) / statistics.median(seconds[1])


def step_ratio(model: Any, ids: torch.Tensor, part: str, per_example: bool, plain: Callable[..., None], rounds: int) -> float:
    """A step's CPU seconds over those of two packed forwards."""
    set_gains(model, part)
    kind = zg.optim.PerExample if per_example else zg.optim.MeZO
    objective = objective_of(model)
    optimizer = kind(model, lr=1e-6, self_check=False)
    optimizer.attach(objective, ids)
    found = ratio(lambda: optimizer.step(objective, ids), lambda: plain(times=2), rounds)
    set_gains(model, "none")
    return found


def set_gains(model: Any, part: str) -> None:
    """Give a model's matrices trained gains: all, those of queries and keys in the upper half, or none."""
    model.requires_grad_(False)
    gains: dict[int, Gain] = {}
    for name, module in model.named_modules():
        if isinstance(module, Packed):
            layer = int(name.split(".")[2]) if ".layers." in name else -1
            wanted = part == "all" or (part == "qk" and layer >= LAYERS // 2 and name.endswith(("q_proj", "k_proj")))
            fresh_gain = Gain.of(module.weight, FORMATS[module.format], module.dtype) if wanted else None
            module.gain = gains.setdefault(id(module.weight), fresh_gain) if fresh_gain is not None else None


def built(format: Format, packed: bool) -> Any:
    """A small Llama whose matrices are random blocks, or what they decode to in bfloat16."""
    import transformers

    config = transformers.LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=LAYERS, tie_word_embeddings=True, **SIZES)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval().bfloat16().requires_grad_(False)
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            rows, columns = module.weight.shape
            blocks = made.setdefault(id(module.weight), random_blocks(format, rows, columns, len(made)))
            if packed:
                pack(module, blocks, format, torch.bfloat16)
            else:
                module.weight.copy_(format.unpacked(blocks))
    return model


def random_blocks(format: Format, rows: int, columns: int, seed: int) -> torch.Tensor:
    """Random codes with scales such that weights have an rms of about 0.02."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randint(0, 256, (rows, format.row_bytes(columns)), generator=generator).to(torch.uint8)
    one = torch.full((1,), 1.0).to(torch.float16).view(torch.uint8)
    for at in format.scales:
        format.blocks(made)[..., at : at + 2] = one
    rms = float(format.unpacked(made[:16]).square().mean().sqrt())
    for at in format.scales:
        format.blocks(made)[..., at : at + 2] = torch.full((1,), 0.02 / rms).to(torch.float16).view(torch.uint8)
    return made


def objective_of(model: Any, scored: int | None = None) -> Callable[[Any], Any]:
    """The mean loss of a row's last tokens, `scored` of them or all."""

    def objective(ids: Any) -> Any:
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        first = 0 if scored is None else hidden.shape[1] - scored
        predicting = hidden[:, first:].reshape(-1, hidden.shape[-1])
        likely = log_likelihoods(predicting, model.get_output_embeddings(), ids[:, 1 + first :].reshape(-1))
        return -likely.view(len(ids), -1).mean(1)

    return objective


def unpacking_ns(format: Format, module: Packed, rounds: int) -> float:
    """CPU nanoseconds to unpack a weight of a matrix to bfloat16: the least of some rounds."""
    seconds = []
    for _ in range(rounds + 1):
        began = time.process_time()
        made = models.unpacked(module.weight, format, torch.bfloat16)
        seconds.append(time.process_time() - began)
    return 1e9 * min(seconds) / made.numel()


def decodes_as_the_library(format: Format, module: Packed) -> bool:
    """Whether a matrix decodes to the bits of GGUF's own library."""
    theirs = gguf.quants.dequantize(module.weight.numpy(), gguf.GGMLQuantizationType[format.name])
    ours = models.unpacked(module.weight, format, torch.float32)
    return bool((ours.view(torch.int32) == torch.from_numpy(theirs).view(torch.int32)).all())


# The demo's file.


def of_demo() -> dict[str, Any]:
    """Memory of the demo's file, packed and unpacked, and whether a written file differs in trained bytes alone."""
    file = loading.demo_file()
    head, there, packed, unpacked = (
        fresh(__file__, "--one", name) for name in ("without_values", "load", "packed_step", "unpacked_step")
    )
    return {
        "file_bytes": file.stat().st_size,
        "load_peak_bytes": there["peak"] - head["peak"],
        "load_ratio": (there["peak"] - head["peak"]) / file.stat().st_size,
        "tensor_bytes": packed["tensor_bytes"],
        "tensor_ratio": packed["tensor_bytes"] / packed["floor_bytes"],
        "train_peak_bytes": packed["train"],
        "inference_peak_bytes": packed["inference"],
        "resident_ratio": packed["train"] / packed["inference"],
        "tensors_ratio": packed["train_tensors"] / packed["inference_tensors"],
        "below_unpacked_bytes": unpacked["train"] - packed["train"],
        "written": fresh(__file__, "--one", "written"),
    }


def without_values() -> dict[str, int]:
    """The peak of a process that has the demo's tokenizer and its model without values."""
    import transformers

    file = loading.demo_file()
    with models.read_once():
        transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        models._without_values(header(file), torch.bfloat16)
    return {"peak": memory.peak_bytes()}


def loaded() -> dict[str, int]:
    loading.load("demo", packing=loading.FROZEN)
    return {"peak": memory.peak_bytes()}


def packed_step() -> dict[str, int]:
    return step_memory(models.load(loading.demo_file(), unpack=UPPER_QK))


def unpacked_step() -> dict[str, int]:
    import re

    model = loading.load("demo").model
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.search(UPPER_QK, name) is not None)
    return step_memory(model)


UPPER_QK = r"layers\.(1[5-9]|2\d)\.self_attn\.[qk]_proj"


def step_memory(model: Any) -> dict[str, int]:
    """Peaks of a per-example step on queries and keys of the upper half, and of evaluating as many rows."""
    ids = torch.randint(4, 40000, (DEMO_ROWS, DEMO_TOKENS), generator=torch.Generator().manual_seed(1))
    objective = objective_of(model, scored=1)
    optimizer = zg.optim.PerExample(model, lr=1e-6, self_check=False)
    expanded = torch.cat([ids, ids])
    base = models.base_of(model)
    beside = sum(t.nbytes for s in optimizer.spaces for t in s.saved().values())

    def evaluate() -> None:
        with torch.no_grad(), half.fast_products():
            objective(expanded)

    found: dict[str, int] = {"tensor_bytes": models.weight_bytes(model) + beside}
    if base is not None:
        trained = {space.name for space in optimizer.spaces}
        floor = sum(base.header[tensor].nbytes for name, tensor in base.tensors.items() if name not in trained)
        found["floor_bytes"] = floor + sum(4 * space.numel for space in optimizer.spaces)
    for name, run in (("inference", evaluate), ("train", lambda: optimizer.step(objective, ids))):
        run()
        memory.reset_peak()
        run()
        run()
        found[name] = memory.peak_bytes()
        with PeakBytes() as live:
            run()
        found[f"{name}_tensors"] = live.peak
    return found


def written() -> dict[str, bool]:
    """Whether files differ from the base in trained bytes alone, for gains that moved and for gains of zero."""
    file = loading.demo_file()
    base = header(file)
    model = models.load(file, gains=r"layers\.29\.self_attn\.q_proj")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.gguf"
        write(model, collect(model), out, "q8_0")
        untouched = out.read_bytes() == file.read_bytes()
        gain = next(p for p in model.parameters() if p.requires_grad)
        gain.data += 0.05
        write(model, collect(model), out, "q8_0")
        entry = base["blk.29.attn_q.weight"]
        before, after = file.read_bytes(), out.read_bytes()
        outside = (
            before[: entry.start] == after[: entry.start]
            and before[entry.start + entry.nbytes :] == after[entry.start + entry.nbytes :]
        )
    return {"untouched": untouched, "trained_bytes_alone": outside and before != after}


MEMORY: dict[str, Callable[[], Any]] = {
    "without_values": without_values,
    "load": loaded,
    "packed_step": packed_step,
    "unpacked_step": unpacked_step,
    "written": written,
}


if __name__ == "__main__":
    main()
