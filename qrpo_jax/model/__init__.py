"""The policy: one decoder for all families, its log-probs and adapters."""
