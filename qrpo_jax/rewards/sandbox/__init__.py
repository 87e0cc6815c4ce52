"""Runs model-written code in separate, restricted processes."""
