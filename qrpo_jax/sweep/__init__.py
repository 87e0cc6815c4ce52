"""A sweep: runs of one config with several values of some keys, the stages that they share, and their table."""
