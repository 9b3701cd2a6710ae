"""A tuned model as a file of its base's kind: the base's bytes, but for the tensors that were trained."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zerograd.quantised import encode, gguf
from zerograd.quantised.formats import FORMATS, K
from zerograd.quantised.gguf import BY_TYPE, FLOATS, Entry
from zerograd.quantised.matrix import Gain, Packed, unpacked
from zerograd.quantised.models import Base, base_of, packed_modules
from zerograd.spaces import Space

F16 = 1
Q8_0 = FORMATS["Q8_0"].type

LARGEST = 65504.0
"""The largest float16."""


def require_writable(model: Any, kind: str) -> None:
    """Raises ValueError where a trained tensor cannot be written to a file of the base's kind.

    kind: of unpacked matrices: "q8_0", "f16" or "same".
    """
    base = _base(model)
    for name, parameter in _unpacked_parameters(model):
        entry = _entry(base, name)
        to = _type(entry, kind)
        if to in BY_TYPE and BY_TYPE[to].name in K:
            problem = f"gguf_type is {kind}, and {entry.name} is {entry.type_name}, which nothing here quantises to"
            raise ValueError(f"{problem}; choose q8_0 or f16, or train the scales")
        if to in BY_TYPE and entry.shape[-1] % BY_TYPE[to].weights:
            raise ValueError(f"gguf_type is {kind}, and a row of {entry.name} has {entry.shape[-1]} weights; choose f16")
        base.to_file(entry, torch.zeros(parameter.shape))


def write(model: Any, spaces: Iterable[Space], out: Path, kind: str) -> None:
    """Write a model, and make it what the file holds, rounding included.

    spaces: the trained ones, which know their values exactly. kind: of unpacked matrices: "q8_0", "f16" or "same".
    Raises ValueError for a value that a file cannot hold, and OSError; no half of a file is left.
    """
    base = _base(model)
    exact = {id(space.parameter): space for space in spaces}
    changed: dict[str, tuple[int, gguf.Made]] = {}
    made: list[tuple[Packed, Tensor]] = []
    done: set[int] = set()
    for name, module in packed_modules(model):
        if module.gain is not None and id(module.gain) not in done:
            done.add(id(module.gain))
            require_sound(name, module)
            blocks = FORMATS[module.format].scaled(module.weight.cpu(), 1 + module.gain.detach().float().cpu())
            assert module.home is not None
            entry = base.header[module.home.tensor]
            changed[entry.name] = entry.type, lambda blocks=blocks, order=module.home.order: _in_order(blocks, order)  # type: ignore[misc]
            made += [(one, blocks) for _, one in packed_modules(model) if one.gain is module.gain]
    for name, parameter in _unpacked_parameters(model):
        entry = _entry(base, name)
        space = exact.get(id(parameter))
        values = (parameter.detach().float() if space is None else space.exact().view(parameter.shape)).cpu()
        to, data, held = _written(base, entry, values, kind, name)
        changed[entry.name] = to, lambda data=data: data  # type: ignore[misc]
        parameter.data = held.to(parameter.dtype).view(parameter.shape).to(parameter.device)
    gguf.write_patched(base.header, out, changed)
    for module, blocks in made:
        module.weight.copy_(blocks)
        if module.gain is not None:
            module.gain.data.zero_()


def require_sound(name: str, module: Packed) -> None:
    """Raises ValueError for a gain that turns a block over, or whose scales no float16 holds."""
    if module.gain is None:
        return
    factors = 1 + module.gain.detach().float().cpu()
    if not bool((factors > 0).all()):
        raise ValueError(f"a gain of {name} is at or below -1, so its block would change its sign; lower the learning rate")
    format = FORMATS[module.format]
    for which in range(len(format.scales)):
        scale = format.scale(module.weight.cpu(), which).float()
        if bool(((scale * factors).abs() > LARGEST)[scale.isfinite()].any()):
            raise ValueError(f"a scale of {name} is beyond float16; lower the learning rate")


def unsound(model: nn.Module) -> str:
    """Why a model's gains cannot be written, or "" where they can."""
    for name, module in packed_modules(model):
        try:
            require_sound(name, module)
        except ValueError as error:
            return str(error)
    return ""


def _written(base: Base, entry: Entry, values: Tensor, kind: str, name: str) -> tuple[int, Tensor, Tensor]:
    """(the type of a tensor, its data in the file, its values as the model then holds them)."""
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinity, and is not written")
    to, in_file = _type(entry, kind), base.to_file(entry, values)
    if to in FLOATS:
        data = in_file.to(FLOATS[to])
        return to, data.contiguous().view(torch.uint8), base.to_model(entry, data)
    format = BY_TYPE[to]
    data = encode.packed(in_file, format)
    return to, data, base.to_model(entry, unpacked(data, format, torch.float32))


def _in_order(blocks: Tensor, order: Tensor | None) -> Tensor:
    """Blocks in the order of the file's rows."""
    if order is None:
        return blocks
    made = torch.empty_like(blocks)
    made[order] = blocks
    return made


def _type(entry: Entry, kind: str) -> int:
    """What a trained tensor is written as: floats and vectors keep their type."""
    if entry.type in FLOATS or len(entry.shape) < 2 or kind == "same":
        return entry.type
    return F16 if kind == "f16" else Q8_0


def _unpacked_parameters(model: Any) -> list[tuple[str, nn.Parameter]]:
    """(name in the file's model, parameter) of trained tensors that are no gains and no part of an adapter."""
    inner, base = (model.get_base_model() if hasattr(model, "get_base_model") else model), _base(model)
    given: dict[int, str] = {}
    for name, parameter in inner.named_parameters(remove_duplicate=False):
        if id(parameter) not in given or name in base.tensors:  # of a tied tensor's names the one that the file has
            given[id(parameter)] = name
    trained = [(given[id(p)], p) for p in inner.parameters() if p.requires_grad and not isinstance(p, Gain)]
    return [(name, p) for name, p in trained if ".lora_" not in name]


def _entry(base: Base, name: str) -> Entry:
    if name not in base.tensors:
        raise ValueError(
            f"{name} lies in no tensor of its own in {base.header.path}, so it cannot be written back; do not train it"
        )
    return base.header[base.tensors[name]]


def _base(model: Any) -> Base:
    base = base_of(model)
    if base is None:
        raise ValueError("the model came from no .gguf file, and none can be written; write a folder")
    return base
