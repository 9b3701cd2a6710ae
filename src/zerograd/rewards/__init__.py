"""Rewards: functions of answers without a gradient, as TRL calls them, and how a step is scored by them."""

from zerograd.rewards.evaluator import Prompt, RewardObjective
from zerograd.rewards.functions import Rewards

__all__ = ["Prompt", "RewardObjective", "Rewards"]
