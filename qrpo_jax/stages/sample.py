"""Stage `sample`: completions of every prompt from the reference policy. Also what `evaluate` samples with."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from qrpo_jax.data.rows import Completion, Row
from qrpo_jax.devices.mesh import axis_size, place, row_sharding
from qrpo_jax.job.job import Job
from qrpo_jax.job.prompts import Prompts, padded, prompt_keys, with_raw_keys
from qrpo_jax.job.units import Counts, run_units
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.sampling.sampler import make_sampler

WIDTH = 16  # prompts are padded to a multiple of this, so that few widths need compiling

Completer = Callable[[Parameters, list[Row], list[int]], tuple[list[Row], Counts]]


def run(job: Job) -> dict[str, Any] | None:
    config = job.config.sample
    parameters = job.reference_parameters(job.local_mesh)
    prompts = Prompts(job, "train")
    complete = make_completer(job, config, source="reference", purpose="sample")

    def work(unit: int) -> tuple[list[Row], Counts]:
        return complete(parameters, prompts.rows(unit, parameters), list(prompts.indices(unit)))

    counts = run_units(job, job.folder("sample"), prompts.units, work, title="sample")
    return None if counts is None else {"units": prompts.units, "counts": counts}


def make_completer(job: Job, config: Any, *, source: str, purpose: str) -> Completer:
    """A function that appends `config.completions` sampled completions to each row.

    Args:
      source: whose completions they are, and what they are marked as: "reference" or "policy".
      purpose: seeds the draws together with the job's seed and the prompt's index.
    """
    text, mesh = job.policy.text, job.local_mesh
    sampler = make_sampler(
        job.graph(source),
        completions=config.completions,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        end_tokens=text.end_tokens,
        top_k=config.top_k,
        top_p=config.top_p,
        compute=job.compute,
    )
    jitted = jax.jit(with_raw_keys(sampler))
    unit = padded(job.config.prompts.unit, axis_size(mesh, "rows"))

    def complete(parameters: Parameters, rows: list[Row], indices: list[int]) -> tuple[list[Row], Counts]:
        prompts = [text.prompt(row.messages, f"row {row.id!r}") for row in rows]
        # A model that is asked for a beginning may end at once.
        said = [any(m.content.strip() for m in row.messages) for row in rows]
        fits = [i for i, p in enumerate(prompts) if said[i] and len(p) <= job.config.prompts.max_tokens]
        counts = {"prompts": len(fits), "prompts dropped: empty": said.count(False)}
        counts["prompts dropped: too long"] = len(rows) - len(fits) - said.count(False)
        rows, prompts, indices = [rows[i] for i in fits], [prompts[i] for i in fits], [indices[i] for i in fits]
        if config.completions == 0 or not rows:
            return rows, counts
        width = padded(max(len(prompt) for prompt in prompts), WIDTH)
        tokens_PxL, lengths_P = np.zeros((unit, width), np.int32), np.ones(unit, np.int32)
        for i, prompt in enumerate(prompts):
            tokens_PxL[i, : len(prompt)], lengths_P[i] = prompt, len(prompt)
        keys = prompt_keys(job.config.seed, purpose, indices, unit)
        samples = jax.device_get(jitted(parameters, *place((tokens_PxL, lengths_P, keys), row_sharding(mesh))))
        done = []
        for i, row in enumerate(rows):
            drawn = []
            for c in range(config.completions):
                tokens = samples.tokens_PxnxT[i, c, : samples.lengths_Pxn[i, c]].astype(np.int32)
                finished = bool(samples.finished_Pxn[i, c])
                drawn.append(
                    Completion(
                        text.decode(tokens, finished),
                        tokens,
                        finished,
                        source,
                        log_prob=float(samples.log_probs_Pxn[i, c]),
                    )
                )
            done.append(dataclasses.replace(row, completions=(*row.completions, *drawn)))
        real = len(rows)
        counts["completions"] = real * config.completions
        counts["completions cut by length limit"] = int((~samples.finished_Pxn[:real]).sum())
        counts["completion tokens"] = int(samples.lengths_Pxn[:real].sum())
        return done, counts

    return complete
