"""Shared parts of stages: the job (a config in a work directory), its prompts, units of work, checks."""
