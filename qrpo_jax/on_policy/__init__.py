"""Training on completions that the policy samples itself, in iterations: the road walked in a circle."""
