"""zerograd: zeroth-order optimisation with evaluations alone.

opt = zerograd.optim.MeZO(model); loss = opt.step(objective, batch)
"""

from zerograd import noise, optim

__version__ = "0.1.0"
__all__ = ["__version__", "noise", "optim"]
