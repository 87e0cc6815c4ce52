"""Runs model-written code in processes of its own."""
