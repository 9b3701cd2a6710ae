"""What fits a machine, and what a step takes: `planned(settings)` is what `zerograd plan` prints.

A model's configuration gives its shape (`shapes`), a pass over tensors without values what it holds (`activations`), the machine is
found and measured, or described (`machine`); of these come rows (`rows`, `seconds`), and what we would run.
"""

from zerograd.planner.planned import Planned, planned

__all__ = ["Planned", "planned"]
