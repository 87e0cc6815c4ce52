"""Where prompts come from: one module a source, and the table that names them."""

from qrpo_jax.data.sources import jsonl, model, programs
from qrpo_jax.data.sources.source import SourceKind

SOURCES: dict[str, SourceKind] = {"programs": programs.KIND, "jsonl": jsonl.KIND, "model": model.KIND}
