"""Completions that a file brings: pairs and lengths of all of them, and the size of a batch, before a job runs."""

from collections.abc import Iterator

import numpy as np

from qrpo_jax.data.rows import Row
from qrpo_jax.data.sources import kind_of
from qrpo_jax.data.sources.listed import ListedRows
from qrpo_jax.data.views import VIEWS, View, pick_units
from qrpo_jax.errors import UserError
from qrpo_jax.job.job import Job
from qrpo_jax.job.prompts import open_listed
from qrpo_jax.job.source_check import sampled_completions

MEASURED = 2000  # rows whose completions are tokenized before a run; further ones only while none has fitted


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
        count = job.config.sft.examples if stage == "sft" else job.config.prompts.count * units_of(sampled, view)
        note_batch(job, stage, count)
        return
    source = open_listed(job, stage)
    counts_R = np.asarray([units_of(candidates(row, view) + sampled, view) for row in rows_of(source)])
    if not counts_R.any():
        raise UserError(
            f"no row of {job.config.prompts.source} has two completions; add completions, sample them, or set "
            "config.select.units='singles' (config.prompts.source, config.sample.completions)"
        )
    without = source.where_true(counts_R == 0)
    if without:
        job.note(f"{stage}: WARNING: {without.line('rows have no two completions and will be dropped')}")
    note_batch(job, stage, int(counts_R.sum()))
    if not sampled:
        check_ties(job, stage, source, view)
        check_fit(job, stage, source, view)


def rows_of(source: ListedRows) -> list[Row]:
    return source.rows(range(source.count))


def candidates(row: Row, view: View) -> int:
    """Number of completions of a row that may be in units."""
    any_source = not VIEWS[view.units].references
    return sum(any_source or completion.source == "reference" for completion in row.completions)


def units_of(completions: int, view: View) -> int:
    """Number of units of a row with so many completions that may be in units."""
    selection = VIEWS[view.units]
    count = min(completions, *(limit or completions for limit in (selection.first, view.first)))
    pairs = {"extremes": int(count >= 2), "disjoint": count // 2, "all": count * (count - 1) // 2}
    return count if selection.pairing is None else pairs[selection.pairing]


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
    tied_R, paired_R = np.zeros((2, source.count), bool)
    for i, row in enumerate(rows_of(source)):
        units = pick_units(row, view, i)
        tied_R[i] = any(row.completions[a].reward == row.completions[b].reward for a, b in units)
        paired_R[i] = len(units) > 0
    if not view.tied_pairs and tied_R.sum() == paired_R.sum() and view.units == "best_worst":
        raise UserError(
            f"all pairs of {job.config.prompts.source} have equal rewards, of which objective "
            f"{job.config.train.objective!r} learns nothing (config.prompts.source, config.train.objective)"
        )
    if tied_R.any():
        what = "will be trained on" if view.tied_pairs else "will be dropped"
        tied = source.where_true(tied_R)
        job.note(f"{stage}: WARNING: {tied.line(f'rows have a pair of equal rewards, which {what}')}")


def check_fit(job: Job, stage: str, source: ListedRows, view: View) -> None:
    """Refuses completions of which none fits `pack.max_tokens`, and notes some that do not."""
    fits, shortest, long_R = 0, 2**31, np.zeros(source.count, bool)
    for i, row in enumerate(rows_of(source)):
        if i >= MEASURED and fits:
            break
        for prompt, longest in sizes(job, source, row, pick_units(row, view, i)):
            excess = prompt + longest - view.max_tokens
            # A prompt may be cut, but not away.
            too_long = excess >= prompt if view.over_long == "truncate_prompt_left" else excess > 0
            long_R[i] |= too_long
            fits, shortest = fits + (not too_long), min(shortest, prompt + longest)
    if not fits:
        raise UserError(
            f"no completion of {job.config.prompts.source} fits pack.max_tokens, which is {view.max_tokens}; with its "
            f"prompt the shortest has {shortest} tokens (config.pack.max_tokens)"
        )
    long = source.where_true(long_R)
    if long:
        among = f", among the first {MEASURED}," if source.count > MEASURED else ""
        what = f"rows{among} have completions that exceed {view.max_tokens} tokens with the prompt and will be dropped"
        job.note(f"{stage}: WARNING: {long.line(what)} (config.pack.max_tokens)")


def sizes(job: Job, source: ListedRows, row: Row, units: list[tuple[int, ...]]) -> Iterator[tuple[int, int]]:
    """For each unit of a row the tokens of its prompt and of its longest completion."""
    text = job.text
    prompt = len(text.prompt(row.messages, source.place(row))) if units else 0
    for unit in units:
        yield prompt, max(len(text.completion(row.completions[i].text)) for i in unit)
