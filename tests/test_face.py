"""What `import zerograd` hands out."""

from __future__ import annotations

import subprocess
import sys

import pytest

import zerograd
from zerograd.integrations.transformers import ZerothOrderMixin
from zerograd.runs.replayed import load
from zerograd.tune.dry_run import rehearse
from zerograd.tune.run import tune


def test_the_face_hands_out_packages_and_objects_and_names_what_it_lacks():
    assert all(getattr(zerograd, name) is not None for name in zerograd.__all__)
    assert (zerograd.load, zerograd.ZerothOrderMixin) == (load, ZerothOrderMixin)
    assert (zerograd.tune.tune, zerograd.tune.rehearse) == (tune, rehearse)
    for face in (zerograd, zerograd.tune):
        with pytest.raises(AttributeError, match=f"module '{face.__name__}' has no attribute 'nothing'"):
            _ = face.nothing


def test_importing_the_face_or_its_version_loads_no_torch():
    code = "import sys, zerograd; zerograd.__version__; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
