"""The entropic objective, made checkable: its density, the lemma's constants, gradients, samplers, and what they say.

Everything here is in float64 and seeded. A check on samples is a check on samples: only what is derived is proved.
"""

from atent.theory.data_entropy import data_entropy_coefficients

__all__ = ["data_entropy_coefficients"]
