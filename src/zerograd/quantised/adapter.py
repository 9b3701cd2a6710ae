"""A low-rank adapter as a GGUF file, for llama.cpp's --lora."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from zerograd.quantised.models import base_of

NAME = "adapter.gguf"
"""The adapter's file, beside PEFT's own."""


def write(model: Any, out: Path) -> None:
    """Write the LoRA adapter of a packed model; rows of queries and keys are in the order of the base's file.

    Raises ValueError for an adapter that llama.cpp has no place for, and OSError; no half of a file is left.
    """
    import gguf

    base = base_of(model)
    assert base is not None
    config = model.peft_config["default"]
    partial = out.with_name(f".{out.name}.partial")
    writer = gguf.GGUFWriter(str(partial), str(base.header.values["general.architecture"]))
    try:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(config.lora_alpha))
        for name, module in model.get_base_model().named_modules():
            if not getattr(module, "lora_A", None):
                continue
            if f"{name}.weight" not in base.tensors:
                raise ValueError(
                    f"{name} lies in no tensor of its own in {base.header.path}, so llama.cpp has no place for its adapter"
                )
            entry = base.header[base.tensors[f"{name}.weight"]]
            a, b = (getattr(module, f"lora_{which}")["default"].weight.detach().float().cpu() for which in "AB")
            order = base.order(entry)
            if order is not None:
                moved = torch.empty_like(b)
                moved[order] = b
                b = moved
            writer.add_tensor(f"{entry.name}.lora_a", a.numpy())
            writer.add_tensor(f"{entry.name}.lora_b", b.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
