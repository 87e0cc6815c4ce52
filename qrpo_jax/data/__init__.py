"""From prompts to packed batches."""
