"""Model folders in Hugging Face layout: read, checked and written."""
