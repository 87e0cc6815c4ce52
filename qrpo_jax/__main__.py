"""`python -m qrpo_jax` is the command of `main`."""

from qrpo_jax.main import command

command()
