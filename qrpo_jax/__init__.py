"""QRPO, Quantile Reward Policy Optimization, of language models in JAX (arXiv 2507.08068)."""

__version__ = "0.1.0"
