"""Contract tests for attacks, training methods, certifiers and settings, both built-in and user-defined.

Each check returns the promises that it verified, and raises `ContractError`, one line, for the first that is broken.
"""

from atent.testing.attacks import check_attack
from atent.testing.bad_inputs import check_settings
from atent.testing.certifiers import check_certifier
from atent.testing.contract import ContractError
from atent.testing.methods import check_method

__all__ = ["ContractError", "check_attack", "check_certifier", "check_method", "check_settings"]
