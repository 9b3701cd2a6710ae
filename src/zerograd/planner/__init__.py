"""The planner behind `zerograd plan`: which methods fit in a machine's memory, and the seconds of a step.

`shapes` reads a model's sizes from its configuration, `activations` measures a pass on fake tensors, `machine`
describes or measures the machine. `rows` and `seconds` compute memory and time of each method; `machine_plan` adds a
recommendation.
"""

from zerograd.planner.machine_plan import MachinePlan, make_plan

__all__ = ["MachinePlan", "make_plan"]
