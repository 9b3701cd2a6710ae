"""Training arguments that forward passes alone cannot honour."""

from __future__ import annotations

import dataclasses
from typing import Any

USUAL_OPTIMISERS = ("adamw_torch", "adamw_torch_fused")
"""transformers' own defaults of `optim`, which say nothing of what a person wants."""


def require_plain(args: Any) -> None:
    """Raises ValueError for training arguments that a Trainer would act on and a zeroth-order step does not."""
    usual = {field.name: field.default for field in dataclasses.fields(args)}
    optimiser = getattr(args.optim, "value", args.optim)
    if args.bf16 or args.fp16:
        name = "bf16" if args.bf16 else "fp16"
        raise ValueError(f"{name}=True runs the model under autocast; load the model in bfloat16 and leave it out")
    if args.gradient_checkpointing:
        raise ValueError("gradient_checkpointing=True is for backward passes, which this trainer does not take; leave it out")
    if args.n_gpu > 1 or args.world_size > 1:
        raise ValueError("several devices are not supported by this trainer; choose one with CUDA_VISIBLE_DEVICES")
    if args.neftune_noise_alpha is not None:
        raise ValueError(
            f"neftune_noise_alpha is {args.neftune_noise_alpha}, noise that differs from branch to branch, so that their losses "
            "cannot be compared; leave it out"
        )
    if args.max_grad_norm not in (0, None, usual["max_grad_norm"]):
        raise ValueError(f"max_grad_norm is {args.max_grad_norm}, and there is no gradient to clip; leave it out")
    if optimiser not in USUAL_OPTIMISERS:
        raise ValueError(f"optim is {optimiser!r}, which needs gradients; leave it out, and choose the method with zeroth_order")
    if getattr(args, "use_liger_kernel", False):
        raise ValueError("use_liger_kernel=True puts in kernels that no perturbation can follow; leave it out")
