"""Updates: what a gradient estimate does to a trained tensor."""

from zerograd.update.adam import AdamRule
from zerograd.update.memory import Memory
from zerograd.update.rule import Elementwise, Kept, Rule, power
from zerograd.update.step import GroupStep, Skip, Step
from zerograd.update.target import Chunk, Target

__all__ = ["AdamRule", "Chunk", "Elementwise", "GroupStep", "Kept", "Memory", "Rule", "Skip", "Step", "Target", "power"]
