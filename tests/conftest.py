"""What must be said before anything is imported: Triton's interpreter where there is no GPU, and that no hub is asked."""

from __future__ import annotations

import os

import torch

os.environ["HF_HUB_OFFLINE"] = "1"
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
