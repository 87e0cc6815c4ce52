"""The prompts of a job, unit by unit, from whichever source its config names."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax import Array

from qrpo_jax.data import prompts
from qrpo_jax.data.rows import Row
from qrpo_jax.devices.mesh import axis_size, place, row_sharding
from qrpo_jax.job.job import Job
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.sampling.sampler import Samples, make_sampler

SPLITS = ("train", "eval")


class Prompts:
    """Prompts of one split, as rows without reference completions."""

    def __init__(self, job: Job, split: str) -> None:
        self.job, self.split = job, split
        config = job.config.prompts
        self._listed: list[Row] | None = None
        if config.source == "jsonl":
            kept, held_out = prompts.split_rows(prompts.read_jsonl(Path(config.path)), config.held_out, config.count)
            self._listed = kept if split == "train" else held_out
            self.count = len(self._listed)
        else:
            self.count = config.count if split == "train" else config.held_out
        self.units = -(-self.count // config.unit)

    def indices(self, unit: int) -> range:
        size = self.job.config.prompts.unit
        return range(unit * size, min((unit + 1) * size, self.count))

    def rows(self, unit: int, parameters: Parameters) -> list[Row]:
        """Rows of a unit; `parameters` are those of the reference policy, which prompts may be sampled from."""
        job = self.job
        if self._listed is not None:
            return [self._listed[i] for i in self.indices(unit)]
        if job.config.prompts.source == "programs":
            return [prompts.program_row(job.config.seed, self.split, i) for i in self.indices(unit)]
        return self._beginnings(unit, parameters)

    def _beginnings(self, unit: int, parameters: Parameters) -> list[Row]:
        """The first tokens of texts that the model makes up, as prompts; text that ends early is shorter."""
        text = self.job.policy.text
        mesh = self.job.local_mesh
        indices = list(self.indices(unit))
        count = padded(len(indices), axis_size(mesh, "rows"))
        start = [text.tokenizer.bos_token_id]
        keys = prompt_keys(self.job.config.seed, f"prompts {self.split}", indices, count)
        tokens_PxL = np.broadcast_to(np.asarray(start, np.int32), (count, len(start)))
        lengths_P = np.full(count, len(start), np.int32)
        samples = jax.device_get(self._sampler(parameters, *place((tokens_PxL, lengths_P, keys), row_sharding(mesh))))
        rows = []
        for i, index in enumerate(indices):
            finished = bool(samples.finished_Pxn[i, 0])
            tokens = samples.tokens_PxnxT[i, 0, : samples.lengths_Pxn[i, 0]]
            rows.append(prompts.text_row(f"{self.split}-{index}", text.decode(tokens, finished).strip()))
        return rows

    @functools.cached_property
    def _sampler(self) -> Callable:
        job = self.job
        sampler = make_sampler(
            job.policy.graph,
            completions=1,
            max_new_tokens=job.config.prompts.beginning_tokens,
            temperature=1.0,
            end_tokens=job.policy.text.end_tokens,
            compute=job.compute,
        )
        return jax.jit(with_raw_keys(sampler))


def padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def prompt_keys(seed: int, purpose: str, indices: list[int], count: int) -> np.ndarray:
    """Raw PRNG keys [count, 2], one for each prompt's index; a prompt's key depends on nothing else."""
    key = jax.random.key(seed)
    for letter in purpose.encode():
        key = jax.random.fold_in(key, letter)
    padding = [0] * (count - len(indices))
    keys_P = jax.vmap(jax.random.fold_in, (None, 0))(key, np.asarray([*indices, *padding], np.uint32))
    return np.asarray(jax.random.key_data(keys_P))


def with_raw_keys(sampler: Callable) -> Callable:
    """The sampler with raw key data in place of typed keys, which host arrays cannot hold."""

    def sample(parameters: Parameters, tokens_PxL: Array, lengths_P: Array, keys_Px2: Array) -> Samples:
        return sampler(parameters, tokens_PxL, lengths_P, jax.random.wrap_key_data(keys_Px2))

    return sample
