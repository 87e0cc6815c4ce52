"""What all stages share: a config in a work directory."""
