"""The corpus of a training stage: its rows, tokenized once, in parts that the processes share, till it is trained."""

import hashlib
import json
from collections.abc import Iterator
from typing import NamedTuple

from tqdm import tqdm

from qrpo_jax.data import corpus_files
from qrpo_jax.data.corpus import Corpus, tokenize
from qrpo_jax.data.rows import Row
from qrpo_jax.data.text import Text
from qrpo_jax.devices.processes import is_first, wait
from qrpo_jax.faults.interruption import RUN
from qrpo_jax.files import remove_folder
from qrpo_jax.job.job import Job
from qrpo_jax.job.stage_rows import StageRows
from qrpo_jax.job.units import Counts, add_counts

FOLDER = "tokens"  # in the stage's folder
PART_ROWS = 8192  # of a part, at least if there are so many
MOST_PARTS = 512  # each has a file that stays open
LAYOUT = 1  # of the files; another one is made again


class Tokenized(NamedTuple):
    """A corpus, and counts of rows that were left out of it."""

    corpus: Corpus
    left_out: Counts


def open_corpus(job: Job, stage: str, rows: StageRows, first: int = 0) -> Tokenized:
    """The corpus of a stage. Parts that are missing, or that were made from something else, are made first.

    Args:
      first: only the first so many completions of each row; 0 for all.

    Raises:
      UserError: about `row`: a row cannot be trained on.
    """
    folder, text = job.folder(stage) / FOLDER, job.text
    ranges = part_ranges(rows.units, rows.total)
    layout = text_key(text)
    keys = [part_key(layout, first, [rows.identity(unit) for unit in units]) for units in ranges]
    parts = len(ranges)
    owned = [part for part in range(parts) if job.shard.owns(part)]
    with tqdm(owned, desc=f"{stage} tokens", unit="part", disable=not is_first() or parts < 2, mininterval=0.5) as bar:
        for done, part in enumerate(bar):
            RUN.progress(done, len(owned), f"parts of {folder.name}")
            if corpus_files.part_whole(folder, part, parts, keys[part]):
                continue
            left_out: list[Counts] = []
            corpus = tokenize(read_units(rows, ranges[part], left_out), text, first, job.shape.settings.vocab_size)
            corpus_files.write_part(folder, part, parts, corpus, keys[part], add_counts(left_out))
    wait(f"{stage} tokens")
    corpus, left_out_of_parts = corpus_files.read_parts(folder, parts, text.tokenizer.bos_token_id)
    return Tokenized(corpus, rows.counts | add_counts(left_out_of_parts))


def discard_corpus(job: Job, stage: str) -> None:
    """Removes the corpus of a stage that has trained; nothing reads it any more."""
    wait(f"{stage} trained")
    if is_first():
        remove_folder(job.folder(stage) / FOLDER)


def read_units(rows: StageRows, units: range, left_out: list[Counts]) -> Iterator[Row]:
    """The rows of units; what each leaves out is appended to `left_out`."""
    for unit in units:
        read, counts = rows.read(unit)
        left_out.append(counts)
        yield from read


def part_ranges(units: int, count: int) -> list[range]:
    """The units of each part: as many as have `PART_ROWS` rows, whatever the number of processes."""
    rows = max(PART_ROWS, -(-count // MOST_PARTS))
    size = -(-rows * units // max(count, 1)) or 1
    return [range(start, min(start + size, units)) for start in range(0, units, size)] or [range(0)]


def text_key(text: Text) -> str:
    """Text that differs between tokenizers and templates; made once, because a tokenizer may take 10 MB as text."""
    tokenizer = text.tokenizer
    facts = [text.chat_template, list(text.end_tokens), tokenizer.bos_token_id, tokenizer.backend_tokenizer.to_str()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def part_key(layout: str, first: int, identities: list[str]) -> str:
    """Text that differs between parts made from other rows, by another tokenizer or template, or in another layout.

    Args:
      layout: from `text_key`.
      first: see `open_corpus`.
      identities: of the part's units, see `StageRows`.
    """
    return hashlib.sha256(json.dumps([LAYOUT, first, layout, identities]).encode()).hexdigest()
