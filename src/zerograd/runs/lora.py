"""What a run did to a model's linear layers, as a LoRA adapter."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from zerograd import journal
from zerograd.journal.header import method_of
from zerograd.machine.files import new_folder
from zerograd.runs.journals import ReadJournal
from zerograd.runs.replayed import base_of, settings_of
from zerograd.text.models import schemes
from zerograd.tune.progress import Listener, Progress, ignore_progress


def write_lora(source: ReadJournal, rank: int, base: str, at: int | None, out: Path, listen: Listener = ignore_progress) -> float:
    """Write a LoRA adapter that PEFT loads: of each linear layer's change the nearest matrix of a rank.

    Returns the share of the whole change that the adapter lacks, in Frobenius norm; the change of other tensors is lacking.
    Raises ValueError for a run that trained an adapter, or changed nothing.
    """
    import peft
    from safetensors.torch import save_file

    settings = settings_of(source)
    if settings.scheme in schemes.ADAPTERS:
        raise ValueError(f"rank is {rank}, and the run trained an adapter ({settings.scheme}); leave it out")
    loaded, slots, groups = base_of(source, base, "cpu", listen)
    steps = journal.path(source.records, at)
    linear = {f"{name}.weight": name for name, module in loaded.model.named_modules() if isinstance(module, torch.nn.Linear)}
    factors: dict[str, torch.Tensor] = {}
    whole = lacking = 0.0
    for i, (slot, group) in enumerate(zip(slots, groups, strict=True)):
        listen(Progress("replaying", i / len(slots)))
        before = slot.exact().clone()
        family, state, seed = method_of(source.header)
        state.begin([slot], source.header["groups"])
        family.begin(slots)
        journal.replay([slot], [group], family, state, seed, steps)
        change = slot.exact() - before
        whole += float(change.square().sum(dtype=torch.float64))
        if slot.name in linear:
            left, right = _nearest(change, rank)
            name = f"base_model.model.{linear[slot.name]}"
            factors[f"{name}.lora_B.weight"], factors[f"{name}.lora_A.weight"] = left, right
            change -= left @ right
        lacking += float(change.square().sum(dtype=torch.float64))
    if not factors or not whole:
        raise ValueError("the run changed no linear layer, so there is nothing that LoRA could hold")
    targets = sorted(name for weight, name in linear.items() if f"base_model.model.{name}.lora_A.weight" in factors)
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, task_type=None)
    config.base_model_name_or_path = base or settings.model
    with new_folder(out) as folder:
        config.save_pretrained(str(folder))
        save_file(factors, folder / "adapter_model.safetensors")
        loaded.tokenizer.save_pretrained(folder)
    return math.sqrt(lacking / whole)


def _nearest(change: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors, (rows, rank) and (rank, columns), of the matrix of a rank that is nearest to a change."""
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    half, more = s[:rank].sqrt(), max(0, rank - len(s))
    left, right = torch.nn.functional.pad(u[:, :rank] * half, (0, more)), half[:, None] * v[:rank]
    return left.contiguous(), torch.nn.functional.pad(right, (0, 0, 0, more)).contiguous()
