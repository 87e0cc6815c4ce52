"""The prompts of a job: the source that its config names, split into units of work."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from qrpo_jax.config.keys import refuse
from qrpo_jax.data.rows import Row
from qrpo_jax.data.sources import SOURCES, kind_of, split_name
from qrpo_jax.data.sources.listed import ListedRows
from qrpo_jax.data.sources.source import DrawBeginnings, Source, SourceOptions
from qrpo_jax.devices.mesh import axis_size, fetch, place, round_up, row_sharding
from qrpo_jax.errors import UserError, located
from qrpo_jax.job.bounds import check_least
from qrpo_jax.job.job import Job
from qrpo_jax.job.source_check import Sources
from qrpo_jax.job.unit_size import unit_size
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.sampling.keys import prompt_keys, with_raw_keys
from qrpo_jax.sampling.sampler import make_sampler

HELD_OUT = ("evaluate",)  # stages that read held-out prompts


class Prompts(NamedTuple):
    """The prompts of one split in units of `size`; the last unit may have fewer."""

    source: Source
    size: int

    @property
    def units(self) -> int:
        return round_up(self.source.count, self.size) // self.size

    @property
    def counts(self) -> dict[str, int]:
        """What the source dropped and left out, for the manifest of the first stage that reads it."""
        return self.source.counts if isinstance(self.source, ListedRows) else {}

    def indices(self, unit: int) -> range:
        return range(unit * self.size, min((unit + 1) * self.size, self.source.count))

    def rows(self, unit: int) -> list[Row]:
        return self.source.rows(self.indices(unit))


def open_prompts(job: Job, stage: str, reference: Parameters | None = None, sources: Sources = SOURCES) -> Prompts:
    """The prompts of a stage in units.

    Args:
      stage: that reads prompts.
      reference: parameters of the reference policy, for prompts that are sampled from it.
      sources: the table that has the kind of `prompts.source`.

    Raises:
      UserError: the source refuses its settings or its file.
      DamagedError: what the stage's folder says of its units is not what was written there.
    """
    source = open_sources(job, reference, sources)["eval" if stage in HELD_OUT else "train"]
    return Prompts(source, unit_size(job, job.folder(stage), source.count))


def open_sources(job: Job, reference: Parameters | None = None, sources: Sources = SOURCES) -> Mapping[str, Source]:
    """The source of each split: "train", "eval" and, with demonstrations, "sft".

    Args:
      reference, sources: as in `open_prompts`.

    Raises:
      UserError: the source refuses its settings or its file.
    """
    draw = None if reference is None else BeginningSampler(job, reference)
    with located(
        "prompts.source", **{key: f"prompts.{key}" for key in ("held_out", "split", "layout", "columns", "mix")}
    ):
        return kind_of(job.config.prompts.source, sources).open(source_options(job.config, draw))


def source_options(config: Any, draw_beginnings: DrawBeginnings | None = None) -> SourceOptions:
    """What a config says to its source."""
    prompts = config.prompts
    return SourceOptions(
        seed=config.seed,
        count=prompts.count,
        held_out=prompts.held_out,
        demonstrations=config.sft.examples,
        name=prompts.source,
        address=split_name(prompts.source)[1],
        split=prompts.split,
        layout=prompts.layout,
        columns=tuple(prompts.columns),
        mix=tuple(prompts.mix),
        draw_beginnings=draw_beginnings,
    )


def open_listed(job: Job, split: str, sources: Sources = SOURCES) -> ListedRows:
    """The rows of a split whose source lists them in a file; arguments and errors as in `open_prompts`."""
    source = open_sources(job, sources=sources)[split]
    assert isinstance(source, ListedRows), "its kind is `listed`"
    return source


class BeginningSampler:
    """Samples the first `prompts.beginning_tokens` tokens of texts from the reference policy; some are shorter."""

    def __init__(self, job: Job, reference: Parameters) -> None:
        self._job, self._reference = job, reference

    def __call__(self, indices: Sequence[int], split: str) -> list[str]:
        """One text for each index; it depends on the job's seed, the split and the index alone."""
        text, mesh = self._job.text, self._job.unit_mesh
        count = round_up(len(indices), axis_size(mesh, "rows"))
        tokens_Px1 = np.full((count, 1), text.tokenizer.bos_token_id, np.int32)
        lengths_P = np.ones(count, np.int32)
        keys_Px2 = prompt_keys(self._job.config.seed, f"prompts {split}", indices, count)
        inputs = place((tokens_Px1, lengths_P, keys_Px2), row_sharding(mesh))
        samples = fetch(self._sampler(self._reference, *inputs))
        texts = []
        for i in range(len(indices)):
            tokens_T = samples.tokens_PxnxT[i, 0, : samples.lengths_Pxn[i, 0]]
            texts.append(text.decode(tokens_T, bool(samples.finished_Pxn[i, 0])).strip())
        return texts

    @functools.cached_property
    def _sampler(self) -> Callable:
        job = self._job
        sampler = make_sampler(
            job.shape.graph,
            completions=1,
            max_new_tokens=job.config.prompts.beginning_tokens,
            temperature=1.0,
            end_tokens=job.text.end_tokens,
            compute=job.compute(job.unit_mesh),
        )
        return jax.jit(with_raw_keys(sampler))


def check_prompts(job: Job, sources: Sources = SOURCES) -> None:
    """Refuses settings of prompts that are out of range, or that the model cannot begin with.

    Raises:
      UserError: naming the key.
    """
    config = job.config
    kind = kind_of(config.prompts.source, sources)
    check_least(config, {"prompts.count": 0 if kind.listed else 1})
    if kind.sampled:
        check_beginnings(job)


def check_held_out(job: Job, least: int) -> None:
    """Refuses too few held-out prompts.

    Raises:
      UserError: naming the key.
    """
    if kind_of(job.config.prompts.source).listed:
        count = open_listed(job, "eval").count
        if count < least:
            raise refuse(
                "prompts.held_out", f"{job.config.prompts.held_out!r}, {count} prompts; at least {least} are needed"
            )
    else:
        check_least(job.config, {"prompts.held_out": least})


def check_beginnings(job: Job) -> None:
    """Refuses a tokenizer that does not mark where a text begins; `BeginningSampler` samples from that mark.

    Raises:
      UserError: naming the key.
    """
    if job.text.tokenizer.bos_token_id is None:
        raise UserError(
            f"prompts from {job.config.prompts.source!r} start at the BOS token of the model, and its tokenizer has "
            "none (config.prompts.source)"
        )
