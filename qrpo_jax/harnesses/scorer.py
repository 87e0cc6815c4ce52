"""Log-probs of continuations given as tokens, and whether greedy decoding would have written them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from qrpo_jax.devices.mesh import axis_size, fetch, place, round_up, row_sharding
from qrpo_jax.devices.program.checked import CheckedProgram
from qrpo_jax.devices.xla_flags import compiler_options
from qrpo_jax.job.job import Job
from qrpo_jax.job.memory import PREFILL_TOKENS
from qrpo_jax.model.compute import Compute
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.model.layout import one_sequence

NARROWEST = 32  # tokens of a batch's rows, at least; wider ones are powers of two, so that few programs are compiled
LOGITS = 1024  # positions whose logits exist at a time


class Continuation(NamedTuple):
    """Tokens to score, and those in front of them, of which there is at least one."""

    context: Sequence[int]
    tokens: Sequence[int]


class Score(NamedTuple):
    """The log-prob in nats of all tokens together, and whether each is the most probable one."""

    log_prob: float
    greedy: bool


Scorer = Callable[[Parameters, Sequence[Continuation]], list[Score]]


def make_scorer(job: Job, side: str) -> Scorer:
    """A function from parameters of a side and continuations to their scores, on the job's `unit_mesh`."""
    mesh, graph = job.unit_mesh, job.graph(side)
    compute = job.compute(mesh)
    jitted = jax.jit(
        lambda parameters, *batch: token_scores(graph, parameters, *batch, compute=compute),
        compiler_options=compiler_options(mesh),
    )
    program = CheckedProgram(jitted, mesh, "the log-probs of continuations", ("max_tokens",))
    rows = axis_size(mesh, "rows")

    def score(parameters: Parameters, continuations: Sequence[Continuation]) -> list[Score]:
        found: list[Score | None] = [None] * len(continuations)
        order = sorted(range(len(continuations)), key=lambda i: length(continuations[i]))
        while order:
            width = width_of(length(continuations[order[-1]]), job.shape.settings.max_positions)
            size = max(rows, PREFILL_TOKENS // width // rows * rows)
            order, part = order[:-size], order[-size:]
            batch = padded([continuations[i] for i in part], width, round_up(len(part), rows) if not order else size)
            sums_B, greedy_B = fetch(program(parameters, *place(batch, row_sharding(mesh))))
            for i, log_prob, greedy in zip(part, sums_B.tolist(), greedy_B.tolist(), strict=False):
                found[i] = Score(log_prob, bool(greedy))
        return [one for one in found if one is not None]

    return score


def length(one: Continuation) -> int:
    """Tokens that the decoder reads: all but the last."""
    return len(one.context) + len(one.tokens) - 1


def width_of(tokens: int, most: int) -> int:
    """The width of a row for so many tokens.

    >>> width_of(5, 512), width_of(33, 512), width_of(500, 500)
    (32, 64, 500)
    """
    return min(max(NARROWEST, 1 << (tokens - 1).bit_length()), round_up(most, 4))


def padded(continuations: Sequence[Continuation], width: int, count: int) -> tuple[np.ndarray, ...]:
    """Tokens [B, L], lengths [B], targets [B, L] and what counts of them, bool [B, L]; surplus rows count nothing."""
    tokens_BxL, targets_BxL = np.zeros((2, count, width), np.int32)
    lengths_B, counts_BxL = np.ones(count, np.int32), np.zeros((count, width), bool)
    for i, one in enumerate(continuations):
        whole, number = [*one.context, *one.tokens], length(one)
        tokens_BxL[i, :number], targets_BxL[i, :number], lengths_B[i] = whole[:-1], whole[1:], number
        counts_BxL[i, number - len(one.tokens) : number] = True
    return tokens_BxL, lengths_B, targets_BxL, counts_BxL


def token_scores(
    graph: nnx.GraphDef,
    parameters: Parameters,
    tokens_BxL: Array,
    lengths_B: Array,
    targets_BxL: Array,
    counts_BxL: Array,
    *,
    compute: Compute,
) -> tuple[Array, Array]:
    """The sum of the targets' log-probs, float32 [B], and whether all are the most probable tokens, bool [B]."""
    decoder = nnx.merge(graph, parameters)
    batch, width = tokens_BxL.shape
    positions_BxL = jnp.broadcast_to(jnp.arange(width), (batch, width))
    hidden_BxLxD, _ = decoder(tokens_BxL, one_sequence(lengths_B, positions_BxL), compute=compute)
    parts = divisor(width, -(-batch * width // LOGITS))

    def some(part: tuple[Array, Array]) -> tuple[Array, Array]:
        hidden_BxlxD, targets_Bxl = part
        logits_BxlxV = decoder.logits(hidden_BxlxD)
        picked_Bxl = jnp.take_along_axis(logits_BxlxV, targets_Bxl[..., None], axis=-1)[..., 0]
        return picked_Bxl - jax.nn.logsumexp(logits_BxlxV, axis=-1), logits_BxlxV.argmax(-1) == targets_Bxl

    def in_parts(x: Array) -> Array:
        return x.reshape(batch, parts, width // parts, *x.shape[2:]).swapaxes(0, 1)

    found = jax.lax.map(some, (in_parts(hidden_BxLxD), in_parts(targets_BxL)))
    log_probs_BxL, greedy_BxL = (x.swapaxes(0, 1).reshape(batch, width) for x in found)
    return jnp.where(counts_BxL, log_probs_BxL, 0.0).sum(-1), jnp.where(counts_BxL, greedy_BxL, True).all(-1)


def divisor(number: int, least: int) -> int:
    """The smallest divisor of a number that is at least so large; the number itself, if none is.

    >>> divisor(64, 3), divisor(500, 7), divisor(4, 9)
    (4, 10, 4)
    """
    return next((part for part in range(max(1, least), number) if number % part == 0), number)
