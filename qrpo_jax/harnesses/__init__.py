"""Harnesses: published benchmarks on the policies of a run, through its own sampler, rewards and units of work."""
