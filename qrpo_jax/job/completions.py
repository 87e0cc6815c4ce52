"""Sampling: completions from the reference or from the trained policy, for rows of prompts."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from qrpo_jax.data.encoder import Encoder
from qrpo_jax.data.pieces import pieces
from qrpo_jax.data.rows import NO_LOG_PROBS, Completion, Row
from qrpo_jax.data.text import Text
from qrpo_jax.devices.mesh import fetch, place, round_up, row_sharding
from qrpo_jax.devices.program.checked import CheckedProgram
from qrpo_jax.devices.xla_flags import compiler_options
from qrpo_jax.errors import UserError, located
from qrpo_jax.job.job import Job
from qrpo_jax.job.memory import PREFILL_TOKENS, WIDTH, Room, prompts_at_once, slots_at_once, unit_room
from qrpo_jax.job.units import Counts
from qrpo_jax.model.compute import Compute
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.sampling.keys import prompt_keys, with_raw_keys
from qrpo_jax.sampling.sampler import Samples, make_sampler, sample_shardings
from qrpo_jax.sampling.stop import Stops, check_stops, cut, make_stops

# From rows, and the index of each row's prompt in its split, to the completed rows and counts. It drops rows whose
# prompt is empty or too long. This module samples here; `served_completions` asks servers.
Completer = Callable[[list[Row], Sequence[int]], tuple[list[Row], Counts]]


def check_sampling(job: Job, name: str) -> None:
    """Refuses sampling settings that exceed the model's positions, and stop strings that are too long.

    Args:
      name: of the config section: "sample", "evaluate" or "watch".

    Raises:
      UserError: naming the key.
    """
    config, positions = job.config, job.shape.settings.max_positions
    with located(stop=f"{name}.stop"):
        check_stops(config[name].stop)
    longest = config.prompts.max_tokens + config[name].max_new_tokens
    if longest > positions:
        raise UserError(
            f"prompts.max_tokens + {name}.max_new_tokens is {longest}, the model was made for {positions} positions; "
            f"lower config.prompts.max_tokens or config.{name}.max_new_tokens"
        )


def jitted_sampler(
    job: Job,
    section: Any,
    side: str,
    end_tokens: tuple[int, ...],
    room: Room | None = None,
    stops: Stops | None = None,
) -> Any:
    """A jitted function from parameters, prompts and raw keys on a mesh to `Samples`.

    Args:
      section, side: as in `make_completer`.
      end_tokens: each of these ends a completion.
      room: by default that of units of work.
      stops: from `stops_of`.
    """
    room = room or unit_room(job)
    return sampler_program(
        job.graph(side),
        job.compute(room.mesh)._replace(stored=room.stored),
        completions=section.completions,
        max_new_tokens=section.max_new_tokens,
        temperature=section.temperature,
        end_tokens=end_tokens,
        top_k=section.top_k,
        top_p=section.top_p,
        min_p=section.min_p,
        stops=stops,
        slots=slots_at_once(job, section, room),
        prefill_tokens=PREFILL_TOKENS,
    )


def stops_of(job: Job, section: Any) -> Stops | None:
    """The stop strings of a section for the job's tokenizer; None if there are none."""
    if not section.stop:
        return None
    return stop_table(tuple(section.stop), job.text.encoder, job.shape.settings.vocab_size)


@functools.lru_cache(maxsize=4)
def stop_table(stop: tuple[str, ...], encoder: Encoder, vocab_size: int) -> Stops:
    """The table of `stops_of`, remembered so that all policies and steps that sample alike share it and its program."""
    return make_stops(stop, pieces(encoder), vocab_size)


@functools.lru_cache(maxsize=4)
def sampler_program(graph: nnx.GraphDef, compute: Compute, **settings: Any) -> Any:
    """The jitted sampler of `jitted_sampler`, remembered so that stages which sample alike compile once."""
    options = None if compute.mesh is None else compiler_options(compute.mesh)
    jitted = jax.jit(
        with_raw_keys(make_sampler(graph, compute=compute, **settings)),
        compiler_options=options,
        out_shardings=sample_shardings(compute),
    )
    if compute.mesh is None:
        return jitted
    return CheckedProgram(jitted, compute.mesh, "sampling", ("completions", "max_new_tokens", "max_tokens"))


def make_completer(
    job: Job,
    section: Any,
    parameters: Parameters,
    *,
    side: str,
    purpose: str,
    most: int,
    text: Text | None = None,
    room: Room | None = None,
    keep_token_log_probs: bool = False,
) -> Completer:
    """A function that appends `section.completions` sampled completions to each row.

    Args:
      section: of the config, with completions, max_new_tokens, temperature, top_k, top_p, min_p, stop and slots.
      parameters: of the side, on the devices of the room.
      side: "reference" or "policy"; recorded as the source of the completions.
      purpose: seeds the draws, together with the job's seed and the prompt's index.
      most: rows of a call, or fewer.
      text: lays out the prompts; by default the job's.
      room: by default that of units of work.
      keep_token_log_probs: completions have those of their tokens, too.
    """
    text, room = text or job.text, room or unit_room(job)
    jitted = jitted_sampler(job, section, side, text.end_tokens, room, stops_of(job, section))
    batch_prompts, name = prompts_at_once(job, section, room, most), purpose.partition(" ")[0]
    keys = {option: f"{name}.{option}" for option in ("completions", "max_new_tokens")}

    def complete(rows: list[Row], indices: Sequence[int]) -> tuple[list[Row], Counts]:
        prompts = [text.prompt(row.messages, f"row {row.id!r}") for row in rows]
        kept, counts = fitting(rows, prompts, job.config.prompts.max_tokens)
        rows, prompts, indices = [rows[i] for i in kept], [prompts[i] for i in kept], [indices[i] for i in kept]
        if section.completions == 0 or not rows:
            return rows, counts
        count = round_up(len(prompts), batch_prompts)
        # Short prompts first, so that a part is padded to no more than its own longest prompt.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        rows, prompts, indices = [rows[i] for i in order], [prompts[i] for i in order], [indices[i] for i in order]
        tokens_PxL, lengths_P = padded_prompts(prompts, count)
        keys_Px2 = prompt_keys(job.config.seed, purpose, indices, count)
        parts = [
            place(part(tokens_PxL, lengths_P, keys_Px2, slice(start, start + batch_prompts)), row_sharding(room.mesh))
            for start in range(0, count, batch_prompts)
        ]
        with located(max_tokens="prompts.max_tokens", **keys):
            drawn = [fetch(jitted(parameters, *part)) for part in parts]
        samples = jax.tree.map(lambda *each: np.concatenate([np.atleast_1d(one) for one in each]), *drawn)
        completed = [
            dataclasses.replace(
                row,
                completions=(
                    *row.completions,
                    *_completions(samples, i, text, side, section.stop, keep_token_log_probs),
                ),
            )
            for i, row in enumerate(rows)
        ]
        completed = [completed[place] for place in np.argsort(order).tolist()]
        return completed, counts | _sample_counts(samples, len(rows))

    return complete


def part(
    tokens_PxL: np.ndarray, lengths_P: np.ndarray, keys_Px2: np.ndarray, of: slice
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Some of the prompts, as wide as the longest of them needs."""
    width = round_up(int(lengths_P[of].max()), WIDTH)
    return tokens_PxL[of, :width], lengths_P[of], keys_Px2[of]


def fitting(rows: list[Row], prompts: list[np.ndarray], max_tokens: int) -> tuple[list[int], Counts]:
    """Indices of the rows to complete, and counts of prompts kept and dropped."""
    # A prompt that was sampled from the model itself is empty if the model ended at once.
    filled = [any(m.content.strip() for m in row.messages) for row in rows]
    kept = [i for i, prompt in enumerate(prompts) if filled[i] and len(prompt) <= max_tokens]
    empty = filled.count(False)
    dropped = {"prompts dropped: empty": empty, "prompts dropped: too long": len(rows) - len(kept) - empty}
    return kept, {"prompts": len(kept)} | dropped


def padded_prompts(prompts: list[np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [count, L] padded on the right, and lengths [count]; surplus rows have length 1."""
    width = round_up(max(len(prompt) for prompt in prompts), WIDTH)
    tokens_PxL, lengths_P = np.zeros((count, width), np.int32), np.ones(count, np.int32)
    for i, prompt in enumerate(prompts):
        tokens_PxL[i, : len(prompt)], lengths_P[i] = prompt, len(prompt)
    return tokens_PxL, lengths_P


def _completions(
    samples: Samples, prompt: int, text: Text, side: str, stop: Sequence[str], keep_token_log_probs: bool
) -> list[Completion]:
    completions = []
    for c in range(samples.tokens_PxnxT.shape[1]):
        length = samples.lengths_Pxn[prompt, c]
        tokens = np.asarray(samples.tokens_PxnxT[prompt, c, :length], np.int32)
        log_probs = samples.log_probs_PxnxT[prompt, c]
        completions.append(
            Completion(
                stopped_text(text, tokens, stop),
                tokens,
                bool(samples.finished_Pxn[prompt, c]),
                side,
                log_prob=float(log_probs.sum()),
                token_log_probs=np.array(log_probs[:length]) if keep_token_log_probs else NO_LOG_PROBS,
            )
        )
    return completions


def stopped_text(text: Text, tokens: np.ndarray, stop: Sequence[str]) -> str:
    """The text of a completion, without its end token and from its first stop string on."""
    content = text.decode(tokens, len(tokens) > 0 and int(tokens[-1]) in text.end_tokens)
    before = cut(content, stop)
    return content if before is None else before


def _sample_counts(samples: Samples, rows: int) -> Counts:
    return {
        "completions": samples.lengths_Pxn[:rows].size,
        "completions cut by length limit": int((~samples.finished_Pxn[:rows]).sum()),
        "completion tokens": int(samples.lengths_Pxn[:rows].sum()),
        "slot-steps": int(samples.slot_steps.sum()),
    }
