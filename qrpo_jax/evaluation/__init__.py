"""Statistics of sampled completions. Pure functions of NumPy arrays: no model, no files, no config."""
