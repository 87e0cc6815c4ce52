"""Stages: each reads rows or parameters and writes rows, parameters or a report."""
