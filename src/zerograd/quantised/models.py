"""Language models of GGUF files: transformers says what each tensor is called and how it lies, and matrices stay packed."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zerograd.quantised import gguf
from zerograd.quantised.gguf import BY_TYPE, FLOATS, Entry, Header
from zerograd.quantised.matrix import Gain, Home, Packed, pack, unpacked

Say = Callable[[str], None]
Choose = Callable[[nn.Module], object]
"""Sets requires_grad on the parameters that will be trained, of a model without values."""


def silent(line: str) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class Base:
    """The file that a model came from; the model has it as its attribute `gguf`.

    tensors: the file's name of each of the model's tensors that lies in it alone. processor: transformers' own, which turns what
    lies in the file into what the model holds.
    """

    header: Header
    tensors: Mapping[str, str]
    processor: Any

    def order(self, entry: Entry) -> Tensor | None:
        """Which row of a file's matrix each row of the model's is, int64; None for the same.

        Raises ValueError where the model holds it otherwise than with its rows in another order.
        """
        rows, columns = entry.shape
        numbered = np.broadcast_to(np.arange(rows, dtype=np.float32)[:, None], (rows, columns))
        made = self._processed(entry, numbered)
        if made is numbered:
            return None
        order = np.asarray(made)[:, 0] if made.shape == numbered.shape else np.zeros(0)
        across = np.broadcast_to(np.arange(columns, dtype=np.float32), (rows, columns))
        in_place = (
            made.shape == numbered.shape and (made == order[:, None]).all() and (self._processed(entry, across) == across).all()
        )
        if not in_place or not np.array_equal(np.sort(order), np.arange(rows)):
            raise ValueError(f"{self.header.path}: the model holds tensor {entry.name} in another form than the file")
        return torch.from_numpy(order.astype(np.int64))

    def to_model(self, entry: Entry, values: Tensor) -> Tensor:
        """A tensor's values as the model holds them: float32."""
        return torch.from_numpy(np.ascontiguousarray(self._processed(entry, values.float().numpy())))

    def to_file(self, entry: Entry, values: Tensor) -> Tensor:
        """The inverse of `to_model`, for values that it moves, or moves and shifts: float32 of the entry's shape.

        Raises ValueError where it does anything else.
        """
        numbered = np.arange(values.numel(), dtype=np.float64).reshape(entry.shape)
        moved = self._processed(entry, numbered)
        if moved is numbered:
            return values.float().view(entry.shape)
        shift = self._processed(entry, np.zeros(entry.shape))
        places = (moved - shift).ravel()
        if not np.array_equal(np.sort(places), np.arange(len(places))):
            raise ValueError(f"{self.header.path}: tensor {entry.name} cannot be written back from what the model holds")
        made = torch.empty(values.numel())
        made[torch.from_numpy(places.astype(np.int64))] = values.float().flatten() - torch.from_numpy(shift).float().flatten()
        return made.view(entry.shape)

    def _processed(self, entry: Entry, weights: Any) -> Any:
        """What the processor makes of a tensor alone. Raises ValueError where it joins it with others."""
        try:
            result = self.processor.process(
                weights=weights, name=entry.name, tensor_key_mapping={}, parsed_parameters={"tensors": {}}
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ValueError(f"{self.header.path}: the model holds tensor {entry.name} joined with others ({error})") from None
        if result.name != entry.name:
            raise ValueError(f"{self.header.path}: the model holds tensor {entry.name} joined with others")
        return result.weights


def load(path: str | Path, dtype: torch.dtype = torch.bfloat16, *, unpack: str = "", gains: str = "", say: Say = silent) -> Any:
    """The model of a GGUF file, with its matrices packed, in evaluation mode.

    dtype: of activations, and of what is not packed: bfloat16 or float32. unpack: a regular expression; parameters whose names
    match are unpacked and trained. gains: one; the packed matrices that match have a trained gain. say: takes lines about tensors
    that could not stay packed.
    Raises FileNotFoundError, or ValueError for a file that is damaged or of a kind that is not read.
    """
    if unpack and gains:
        raise ValueError(f"unpack is {unpack!r} and gains {gains!r}; give one of them")
    wanted = re.compile(unpack or gains)

    def choose(model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(bool(unpack or gains) and bool(wanted.search(name)))

    model = load_chosen(Path(path), dtype, choose, bool(gains), say)
    if (unpack or gains) and not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"{'unpack' if unpack else 'gains'} {unpack or gains!r} matches no matrix of {path}")
    return model


def load_chosen(path: Path, dtype: torch.dtype, choose: Choose, as_gains: bool, say: Say = silent) -> Any:
    """The model of a GGUF file; what `choose` marks is trained: unpacked, or with as_gains by the gains of its packed matrices
    alone.
    """
    import transformers

    if not path.exists():
        raise FileNotFoundError(f"model {str(path)!r} is not there")
    header = gguf.header(path)
    with read_once():
        model, base = _without_values(header, dtype)
    model.requires_grad_(False)
    choose(model)
    _fill(model, base, dtype, as_gains, say)
    missing = next((name for name, p in model.named_parameters() if p.device.type == "meta"), None)
    if missing is not None:
        raise ValueError(f"{path} has no tensor for {missing} of its {type(model).__name__}; it cannot be run so")
    model.gguf = base
    assert isinstance(model, transformers.PreTrainedModel)
    return model.eval()


def base_of(model: Any) -> Base | None:
    """The file that a model's packed matrices came from, an adapter's base model included; None for other models."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    found: Base | None = getattr(inner, "gguf", None)
    return found


def packed_modules(model: nn.Module) -> Iterator[tuple[str, Packed]]:
    """(name, module) of every packed module; a matrix that two modules share comes with both."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Packed))


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and packed matrices; what modules share comes once."""
    held = {id(parameter): parameter.nbytes for parameter in model.parameters()}
    return sum((held | {id(module.weight): module.weight.nbytes for _, module in packed_modules(model)}).values())


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """Cache the parsing of a GGUF file and the map of its tensor names for the length of the block.

    transformers parses the file three times, for configuration, tokenizer and weights, and makes the map once per
    module. Both are plain Python, and slow.
    """
    import gguf as library

    before = {name: getattr(library, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, function in before.items():
            setattr(library, name, function if hasattr(function, "cache_info") else functools.cache(function))
        yield
    finally:
        for name, function in before.items():
            setattr(library, name, function)


def _without_values(header: Header, dtype: torch.dtype) -> tuple[Any, Base]:
    """A model whose parameters have no values, and where they lie in the file."""
    import accelerate  # type: ignore[import-untyped]
    import transformers
    from transformers import modeling_gguf_pytorch_utils as names

    path, architecture = header.path, str(header.values.get("general.architecture"))
    try:
        config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        parsed = names.load_gguf_checkpoint(str(path), return_tensors=False)["config"]
        processor = names.TENSOR_PROCESSORS.get(architecture, names.TensorProcessor)(config=parsed)
        with accelerate.init_empty_weights(include_buffers=False):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        model.tie_weights()
        found = names.get_gguf_hf_weights_map(model, processor)
    except Exception as error:  # of a library, which raises what it likes
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path}: transformers has no names for architecture {architecture} ({why}); give a folder of weights"
        ) from None
    in_file = {entry.name for entry in header.tensors}
    tensors = {name: tensor for tensor, name in found.items() if tensor in in_file}
    return model, Base(header, tensors, processor)


def _fill(model: Any, base: Base, dtype: torch.dtype, as_gains: bool, say: Say) -> None:
    """Give every parameter its values, or its module its blocks."""
    joined: dict[str, Any] = {"tensors": {}}
    by_tensor = {tensor: name for name, tensor in base.tensors.items()}
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for own, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, own))
    for entry in base.header.tensors:
        name = by_tensor.get(entry.name)
        parameter = None if name is None else _parameter(model, name)
        if parameter is None:
            _join(base, entry, by_tensor, joined)
            continue
        owners = places[id(parameter)]
        trained = parameter.requires_grad
        if entry.type in BY_TYPE and (as_gains or not trained) and _packable(owners, entry):
            try:
                order = base.order(entry)
            except ValueError as error:
                say(f"{error}; its {parameter.numel() * dtype.itemsize:,} bytes are unpacked")
            else:
                _pack(owners, base, entry, order, dtype, trained)
                continue
        values = _values(base, entry, dtype)
        made = nn.Parameter(values.view(parameter.shape), requires_grad=trained and not as_gains)
        for module, own in owners:
            module._parameters[own] = made
    for name, values in joined["tensors"].items():
        parameter = _parameter(model, name)
        if parameter is not None and parameter.device.type == "meta":
            for module, own in places[id(parameter)]:
                module._parameters[own] = nn.Parameter(
                    values.to(dtype).view(parameter.shape), requires_grad=parameter.requires_grad
                )


def _parameter(model: Any, name: str) -> nn.Parameter | None:
    try:
        found: nn.Parameter = model.get_parameter(name)
    except AttributeError:
        return None
    return found


def _packable(owners: list[tuple[nn.Module, str]], entry: Entry) -> bool:
    """Whether all that use a parameter are linear layers and tables of embeddings, which can hold it packed."""
    return len(entry.shape) == 2 and all(own == "weight" and _takes_blocks(module) for module, own in owners)


def _takes_blocks(module: nn.Module) -> bool:
    kind = next((base for base in (nn.Linear, nn.Embedding) if isinstance(module, base)), None)
    if kind is None or type(module) is kind or type(module).forward is kind.forward:
        return kind is not None
    return "super().forward(" in inspect.getsource(type(module).forward)  # a scaled table of embeddings, as Gemma has


def _pack(
    owners: list[tuple[nn.Module, str]], base: Base, entry: Entry, order: Tensor | None, dtype: torch.dtype, trained: bool
) -> None:
    blocks, format = base.header.read(entry), BY_TYPE[entry.type]
    if order is not None:
        blocks = blocks[order]
    home = Home(str(base.header.path), entry.name, order)
    gain = Gain.of(blocks, format, dtype) if trained else None
    for module, _ in owners:
        pack(module, blocks, format, dtype, home).gain = gain


def _values(base: Base, entry: Entry, dtype: torch.dtype) -> Tensor:
    """A tensor's values as the model holds them, unpacked."""
    raw = base.header.read(entry)
    if entry.type in FLOATS:
        return base.to_model(entry, raw).to(dtype)
    try:
        order = base.order(entry) if len(entry.shape) == 2 else None
    except ValueError:
        return base.to_model(entry, unpacked(raw, BY_TYPE[entry.type], torch.float32)).to(dtype)
    if len(entry.shape) != 2:
        return base.to_model(entry, unpacked(raw.flatten(0, -2), BY_TYPE[entry.type], torch.float32).view(entry.shape)).to(dtype)
    return unpacked(raw if order is None else raw[order], BY_TYPE[entry.type], dtype)


def _join(base: Base, entry: Entry, by_tensor: Mapping[str, str], joined: dict[str, Any]) -> None:
    """Let the processor put a tensor where it belongs in a larger one, such as a mixture's experts; others are left in the file."""
    raw = base.header.read(entry)
    values = raw if entry.type in FLOATS else unpacked(raw.flatten(0, -2), BY_TYPE[entry.type], torch.float32).view(entry.shape)
    with contextlib.suppress(KeyError):
        base.processor.process(
            weights=values.float().numpy(), name=entry.name, tensor_key_mapping=dict(by_tensor), parsed_parameters=joined
        )
