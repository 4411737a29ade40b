"""The gradient of the data-entropy loss from samples: one coefficient for each sample's own gradient.

Sampling and training share it: it lives beside the Langevin step, where methods may import it.
"""

from atent.sgld import data_entropy_coefficients

__all__ = ["data_entropy_coefficients"]
