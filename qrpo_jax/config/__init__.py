"""The config of a run: its keys, the files that set them, the command line that overrides them, and their help.

Nothing here imports jax, so that a mistake in a config is answered at once.
"""

from qrpo_jax.config.config import Config
from qrpo_jax.config.grids import Grids
from qrpo_jax.config.keys import Choice, Either, Name, Number, Several, Switch, Text, Whole

__all__ = ["Choice", "Config", "Either", "Grids", "Name", "Number", "Several", "Switch", "Text", "Whole"]
