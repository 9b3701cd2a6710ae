"""What must be said before anything is imported: Triton's interpreter where there is no GPU, and that no hub is asked. That no test
is timed, and that Ctrl-C is one even where whoever started the tests has switched it off."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def threads(request):
    """As many threads of torch's as the parameter says."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)
