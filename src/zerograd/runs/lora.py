"""The change that a run made to a model's linear layers, as a LoRA adapter."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from zerograd import journal
from zerograd.journal.header import recorded_memory
from zerograd.machine.files import new_folder
from zerograd.runs.journals import ReadJournal
from zerograd.runs.replayed import base_of, settings_of
from zerograd.text.models import schemes
from zerograd.tune.progress import Listener, Progress, ignore_progress


def write_lora(source: ReadJournal, rank: int, base: str, at: int | None, out: Path, listen: Listener = ignore_progress) -> float:
    """Write a LoRA adapter for PEFT, with the nearest matrix of a rank to each linear layer's change.

    Returns the share of the total change that the adapter lacks, in Frobenius norm; it lacks the change of all other
    tensors.
    Raises ValueError for a run that trained an adapter, or changed no linear layer.
    """
    import peft
    from safetensors.torch import save_file

    settings = settings_of(source)
    if settings.scheme in schemes.ADAPTERS:
        raise ValueError(f"rank is {rank}, and the run trained an adapter ({settings.scheme}); leave it out")
    loaded, spaces, groups = base_of(source, base, "cpu", listen)
    steps = journal.path(source.records, at)
    linear = {f"{name}.weight": name for name, module in loaded.model.named_modules() if isinstance(module, torch.nn.Linear)}
    factors: dict[str, torch.Tensor] = {}
    total = missing = 0.0
    for i, (space, group) in enumerate(zip(spaces, groups, strict=True)):
        listen(Progress("replaying", i / len(spaces)))
        before = space.exact().clone()
        journal.replay(recorded_memory(source.header, [space], [group], trained=spaces), steps)
        change = space.exact() - before
        total += float(change.square().sum(dtype=torch.float64))
        if space.name in linear:
            left, right = _nearest(change, rank)
            name = f"base_model.model.{linear[space.name]}"
            factors[f"{name}.lora_B.weight"], factors[f"{name}.lora_A.weight"] = left, right
            change -= left @ right
        missing += float(change.square().sum(dtype=torch.float64))
    if not factors or not total:
        raise ValueError("the run changed no linear layer, so a LoRA adapter would be empty")
    targets = sorted(name for weight, name in linear.items() if f"base_model.model.{name}.lora_A.weight" in factors)
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, task_type=None)
    config.base_model_name_or_path = base or settings.model
    with new_folder(out) as folder:
        config.save_pretrained(str(folder))
        save_file(factors, folder / "adapter_model.safetensors")
        loaded.tokenizer.save_pretrained(folder)
    return math.sqrt(missing / total)


def _nearest(change: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors, (rows, rank) and (rank, columns), of the nearest matrix of a rank to a change."""
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    half, more = s[:rank].sqrt(), max(0, rank - len(s))
    left, right = torch.nn.functional.pad(u[:, :rank] * half, (0, more)), half[:, None] * v[:rank]
    return left.contiguous(), torch.nn.functional.pad(right, (0, 0, 0, more)).contiguous()
