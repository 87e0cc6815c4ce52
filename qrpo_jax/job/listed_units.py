"""Completions that a file brings: pairs and lengths of all of them, and the size of a batch, before a job runs."""

from collections.abc import Iterator

import numpy as np

from qrpo_jax.data.rows import Row
from qrpo_jax.data.sources import kind_of
from qrpo_jax.data.sources.listed import Found, ListedRows
from qrpo_jax.data.views import VIEWS, View, pick_units, unit_count
from qrpo_jax.errors import UserError
from qrpo_jax.job.job import Job
from qrpo_jax.job.prompts import open_listed
from qrpo_jax.job.source_check import sampled_completions


def check_units(job: Job, stage: str, view: View) -> None:
    """Refuses rows of which a training stage could use nothing, and notes what it will drop.

    Args:
      stage: "sft" or "train", also the name of the config section.
      view: the completions that it selects.

    Raises:
      UserError: naming the key.
    """
    sampled = sampled_completions(job.config) if stage == "train" else 0
    if not kind_of(job.config.prompts.source).listed:
        count = job.config.sft.examples if stage == "sft" else job.config.prompts.count * unit_count(sampled, view)
        note_batch(job, stage, count)
        return
    source = open_listed(job, stage)
    counts_R = unit_counts(source, sampled, view)
    if not counts_R.any():
        raise UserError(no_units(job, view))
    without = source.where_true(counts_R == 0)
    if without:
        those = " of the reference policy" if VIEWS[view.units].references else ""
        job.note(f"{stage}: WARNING: {without.line(f'rows have no two completions{those} and will be dropped')}")
    note_batch(job, stage, int(counts_R.sum()))
    if not sampled:
        check_ties(job, stage, source, view)
        check_fit(job, stage, source, view)


def no_units(job: Job, view: View) -> str:
    """Why no row has a unit, and what to do."""
    source = job.config.prompts.source
    if VIEWS[view.units].references:
        return (
            f"no row of {source} has two completions of the reference policy, which view {view.units!r} takes; stage "
            "sample writes them and layout 'qrpo_offpolicy' reads them (config.select.units, config.prompts.source)"
        )
    return (
        f"no row of {source} has two completions; add completions, sample them, or set config.select.units='singles' "
        "(config.prompts.source, config.sample.completions)"
    )


def chosen(source: ListedRows) -> Iterator[tuple[int, Row]]:
    """The indices and rows of a sample, and then all others, for a check that goes on only while it has to."""
    sample = source.looked_at()
    yield from source.read(sample)
    if len(sample) < source.count:
        yield from source.read(np.setdiff1d(np.arange(source.count), sample))


def unit_counts(source: ListedRows, sampled: int, view: View) -> np.ndarray:
    """Number of units of each row when `sampled` completions of the reference policy have been added, int64 [R]."""
    listing = source.listing
    _, first_K, of_R = np.unique(
        (listing.completions_R.astype(np.int64) << 32) + listing.sampled_R, return_index=True, return_inverse=True
    )
    kinds = zip(listing.completions_R[first_K].tolist(), listing.sampled_R[first_K].tolist(), strict=True)
    counts = [unit_count(completions + sampled, view, references + sampled) for completions, references in kinds]
    return np.asarray(counts, np.int64)[of_R]


def note_batch(job: Job, stage: str, units: int) -> None:
    """Notes a batch that is larger than the data, in which completions would occur several times."""
    size = job.config[stage].batch_size
    if size > units:
        job.note(
            f"{stage}: WARNING: a batch has {size} units, and there are {units} in all, so that an epoch is less than "
            f"one step (config.{stage}.batch_size)"
        )


def check_ties(job: Job, stage: str, source: ListedRows, view: View) -> None:
    """Refuses pairs that all have equal rewards, if the objective drops such pairs, and notes some."""
    if view.units == "singles":
        return
    refuses = not view.tied_pairs and view.units == "best_worst"
    sample, looked, paired, tied, first = len(source.looked_at()), 0, 0, 0, 0
    for index, row in chosen(source):
        if looked >= sample and not (refuses and paired == tied):
            break
        units, looked = pick_units(row, view, index), looked + 1
        paired += len(units) > 0
        if any(row.completions[a].reward == row.completions[b].reward for a, b in units):
            tied, first = tied + 1, first if tied else index
    if refuses and paired == tied:
        raise UserError(
            f"all pairs of {job.config.prompts.source} have equal rewards, of which objective "
            f"{job.config.train.objective!r} learns nothing (config.prompts.source, config.train.objective)"
        )
    if tied:
        what = "will be trained on" if view.tied_pairs else "will be dropped"
        found = Found(tied, looked, source.place_of(first), source.count)
        job.note(f"{stage}: WARNING: {found.line(f'rows have a pair of equal rewards, which {what}')}")


def check_fit(job: Job, stage: str, source: ListedRows, view: View) -> None:
    """Refuses completions of which none fits `pack.max_tokens`, and notes some that do not."""
    sample, looked, fits, shortest, long, first = len(source.looked_at()), 0, 0, 2**31, 0, 0
    for index, row in chosen(source):
        if looked >= sample and fits:
            break
        looked, too_long = looked + 1, False
        for prompt, longest in sizes(job, source, row, pick_units(row, view, index)):
            excess = prompt + longest - view.max_tokens
            # A prompt may be cut, but not away.
            exceeds = excess >= prompt if view.over_long == "truncate_prompt_left" else excess > 0
            too_long, fits, shortest = too_long or exceeds, fits + (not exceeds), min(shortest, prompt + longest)
        if too_long:
            long, first = long + 1, first if long else index
    if not fits:
        raise UserError(
            f"no completion of {job.config.prompts.source} fits pack.max_tokens, which is {view.max_tokens}; with its "
            f"prompt the shortest has {shortest} tokens (config.pack.max_tokens)"
        )
    if long:
        what = f"rows have completions that exceed {view.max_tokens} tokens with the prompt and will be dropped"
        found = Found(long, looked, source.place_of(first), source.count)
        job.note(f"{stage}: WARNING: {found.line(what)} (config.pack.max_tokens)")


def sizes(job: Job, source: ListedRows, row: Row, units: list[tuple[int, ...]]) -> Iterator[tuple[int, int]]:
    """For each unit of a row the tokens of its prompt and of its longest completion."""
    text = job.text
    prompt = len(text.prompt(row.messages, source.place(row))) if units else 0
    for unit in units:
        completions = [row.completions[i] for i in unit]
        yield prompt, max(len(c.tokens) or len(text.completion(c.text, c.finished)) for c in completions)
