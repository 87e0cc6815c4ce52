"""Prompts that a file lists: what a job refuses about them, and what it says about them before it runs."""

import numpy as np

from qrpo_jax.data.sources import SOURCES, kind_of, listed
from qrpo_jax.data.sources.listed import Found, ListedRows, Measured
from qrpo_jax.data.sources.listing import REVERSED, ROLES
from qrpo_jax.errors import UserError, located
from qrpo_jax.job.job import Job
from qrpo_jax.job.prompts import Sources, open_listed
from qrpo_jax.job.source_check import sampled_completions

TRAINS = ("sample", "score", "reference", "train")  # stages that read the rows to train on
PURPOSES = {"train": "to train on", "eval": "held out"}


def check_listed_prompts(job: Job, sources: Sources = SOURCES) -> None:
    """Refuses listed prompts that no stage could use, and notes which ones are held out, dropped or suspicious.

    Raises:
      UserError: naming the key, or the file and line.
    """
    config = job.config
    if not kind_of(config.prompts.source, sources).listed:
        return
    splits = {split: open_listed(job, split, sources) for split in PURPOSES}
    most = config.prompts.max_tokens
    with located(
        "prompts.source", max_tokens="prompts.max_tokens", completions="sample.completions", template="model.template"
    ):
        if "sft" in config.stages or (sampled_completions(config) == 0 and set(TRAINS) & set(config.stages)):
            listed.check_completions(splits["train"])
        measured = {
            split: listed.check_lengths(source, job.text, most, PURPOSES[split]) for split, source in splits.items()
        }
    note_splits(job, splits["train"], splits["eval"])
    for split, source in splits.items():
        note_sample(job, source, measured[split], PURPOSES[split])
        note_tokens(job, source, measured[split], PURPOSES[split])
        note_messages(job, source, PURPOSES[split])
        note_special(job, source, measured[split], PURPOSES[split])
    note_repeats(job, splits["train"], splits["eval"])
    note_completions(job, splits["train"])
    if "train" in config.stages:
        check_room(job, splits["train"], measured["train"])


def warn(job: Job, found: Found, what: str) -> None:
    """Notes a warning about rows, if any were found."""
    if found:
        job.note(f"prompts: WARNING: {found.line(what)}")


def note_splits(job: Job, train: ListedRows, held_out: ListedRows) -> None:
    """Notes which prompts are trained on and held out, and numbers in the config that do not fit them."""
    config = job.config.prompts
    unused = f", {train.left_out} not used" if train.left_out else ""
    job.note(f"prompts: {train.count} to train on, {held_out.count} held out{unused} ({config.source})")
    if train.layout:
        job.note(f"prompts: {train.layout}")
    for mixed in train.mixed:
        job.note(f"prompts: {mixed.line()}")
    for source in (train, held_out):
        for dropped in source.dropped:
            job.note(f"prompts: WARNING: {dropped.line()}")
    if held_out.count and "evaluate" not in job.config.stages and not isinstance(config.held_out, str):
        job.note(
            f"prompts: WARNING: the last {held_out.count} are held out, and no stage evaluates on them; "
            "config.prompts.held_out=0 trains on all"
        )
    if config.count > train.count:
        job.note(f"prompts: WARNING: config.prompts.count is {config.count}, and there are {train.count} to train on")
    if sampled_completions(job.config) and config.unit > train.count:
        job.note(
            f"prompts: WARNING: config.prompts.unit is {config.unit}: so many prompts are sampled from at a time, and "
            f"there are {train.count}; a smaller unit saves the rest"
        )


def note_sample(job: Job, source: ListedRows, measured: Measured, purpose: str) -> None:
    """Notes that prompts are too many to tokenize all of them before the run."""
    if len(measured.indices_P) < source.count:
        job.note(
            f"prompts: {len(measured.indices_P)} of {source.count} prompts {purpose} were tokenized to check them; the "
            "stages count all that they drop"
        )


def note_tokens(job: Job, source: ListedRows, measured: Measured, purpose: str) -> None:
    """Notes prompts that will be dropped, and prompts that lose characters."""
    most = job.config.prompts.max_tokens
    too_long = source.where_true(measured.lengths_P > most, measured.indices_P)
    warn(job, too_long, f"prompts {purpose} exceed config.prompts.max_tokens, which is {most}, and will be dropped")
    unknown = source.where_true(measured.unknown_P, measured.indices_P)
    warn(job, unknown, f"prompts {purpose} have characters that the tokenizer does not know")


def note_messages(job: Job, source: ListedRows, purpose: str) -> None:
    """Notes messages whose roles the template treats in a way that may surprise."""
    if job.config.model.template == "plain":
        several = source.where("several messages")
        warn(job, several, f"prompts {purpose} have several messages, which template 'plain' joins without their roles")
    else:
        odd = source.where("odd role")
        warn(job, odd, f"prompts {purpose} have a message of a role other than {', '.join(ROLES)}")


def note_special(job: Job, source: ListedRows, measured: Measured, purpose: str) -> None:
    """Notes prompts with strings that look like special tokens."""
    special = source.where_true(measured.special_P, measured.indices_P)
    if special:
        job.note(f"prompts: {special.line(f'prompts {purpose} hold strings like special tokens, taken as plain text')}")


def note_repeats(job: Job, train: ListedRows, held_out: ListedRows) -> None:
    """Notes prompts that are in both splits, or twice in the one that is trained on."""
    both = held_out.where_true(np.isin(held_out.listing.prompts_R, train.listing.prompts_R))
    warn(job, both, "held-out prompts are also trained on")
    again = train.where_true(train.listing.repeats())
    if again:
        job.note(f"prompts: {again.line('prompts to train on repeat an earlier one; each has its own references')}")


def note_completions(job: Job, train: ListedRows) -> None:
    """Notes completions and rewards of the file that contradict each other."""
    what = "rows have a chosen completion of lower reward than the rejected one; rewards decide"
    warn(job, train.where(REVERSED), what)
    warn(job, train.where("rewards alike"), "rows have rewards that differ by less than float32 can tell")
    warn(job, train.where("texts alike"), "rows have two completions of the same text")


def check_room(job: Job, train: ListedRows, measured: Measured) -> None:
    """Notes prompts that leave no room for a completion, and refuses them if all are such.

    Raises:
      UserError: naming the key.
    """
    most, new = job.config.pack.max_tokens, job.config.sample.max_new_tokens
    if job.config.pack.over_long != "drop":
        return
    kept_P = measured.lengths_P <= job.config.prompts.max_tokens
    full_P = kept_P & (measured.lengths_P >= most)
    sample = "" if len(kept_P) == train.count else f" of a sample of {len(kept_P)}"
    if full_P.sum() == kept_P.sum():
        raise UserError(
            f"pack.max_tokens is {most}, and every prompt{sample} has at least {measured.lengths_P[kept_P].min()} "
            "tokens, so that no completion fits (config.pack.max_tokens)"
        )
    full = train.where_true(full_P, measured.indices_P)
    warn(job, full, f"prompts have no room for a completion in config.pack.max_tokens, {most}, and will be dropped")
    tight = train.where_true(kept_P & ~full_P & (measured.lengths_P + new > most), measured.indices_P)
    if sampled_completions(job.config) and tight:
        job.note(
            f"prompts: {tight.line(f'prompts have more than {most - new} tokens')}; of these, completions that exceed "
            f"{most} tokens with the prompt will be dropped (config.pack.max_tokens)"
        )
