"""Quantised models: matrices stay in the blocks of their file, and their scales can be trained as gains."""

from zerograd.quantised import rule
from zerograd.quantised.formats import FORMATS, Format
from zerograd.quantised.matrix import Gain, PackedEmbedding, PackedLinear, pack, packed_linear
from zerograd.quantised.models import load

__all__ = ["FORMATS", "Format", "Gain", "PackedEmbedding", "PackedLinear", "load", "pack", "packed_linear"]

rule.register()
