"""A tiny policy and random completions for the tests of model, data and training."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qrpo_jax import transforms
from qrpo_jax.data import corpus, packing
from qrpo_jax.data.batch import Batch
from qrpo_jax.data.examples import Examples, select
from qrpo_jax.data.loader import assemble
from qrpo_jax.data.packing import Plan, plan_batches
from qrpo_jax.data.per_completion import PerCompletion
from qrpo_jax.data.rows import Row
from qrpo_jax.data.text import Text
from qrpo_jax.data.views import View
from qrpo_jax.model import decoder

# Twice a prime where a mesh splits by two, so that a transposed or wrongly split axis shows.
SETTINGS = decoder.DecoderSettings(
    vocab_size=46, d_model=26, layers=3, heads=6, kv_heads=2, head_dim=10, d_ff=34, max_positions=61
)
UNTIED = dataclasses.replace(SETTINGS, tie_embeddings=False)
GRAPH = decoder.graph(SETTINGS)
BETA = 0.3  # of the examples' log Z
SPREAD = dict(embedding=0.4, head=0.4, q=0.2, k=0.2, v=0.2, o=0.1, gate=0.2, up=0.2, down=0.1)


@functools.cache
def parameters(settings: decoder.DecoderSettings = SETTINGS, seed: int = 0) -> decoder.Parameters:
    """Random parameters whose logits spread over several nats, unlike those of a fresh model.

    Drawn by NumPy, because compiling jax's generators takes longer than most tests.
    """
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> jax.Array:
        name = path[-1].key
        if name == "scale":
            return jnp.asarray(1 + 0.1 * rng.normal(size=leaf.shape), jnp.float32)
        return jnp.asarray(SPREAD[name] * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, decoder.abstract_parameters(settings))


def examples(
    count: int, *, pairs: bool = False, siblings: int = 0, seed: int = 0, vocab: int = SETTINGS.vocab_size
) -> Examples:
    """Completions of uneven lengths with random tokens, rewards and reference log-probs.

    Args:
      siblings: so many neighbouring completions have the same prompt; by default 1, or 2 for pairs.
    """
    siblings = siblings or (2 if pairs else 1)
    rng = np.random.default_rng(seed)
    row_C = np.arange(count) // siblings
    prompt_lengths, lengths = rng.integers(1, 6, count)[row_C * siblings], rng.integers(1, 9, count)
    reward = rng.normal(size=count).astype(np.float32)
    if pairs:
        reward = np.sort(reward.reshape(-1, 2))[:, ::-1].reshape(-1)
    quantile = rng.integers(0, 8, count).astype(np.float32) / 7
    texts = np.split(
        rng.integers(1, vocab, (prompt_lengths + lengths).sum()).astype(np.int32),
        np.cumsum(prompt_lengths + lengths)[:-1],
    )
    # Siblings have the prompt of the first one.
    tokens = np.concatenate([text[prompt_lengths[c] * (c % siblings > 0) :] for c, text in enumerate(texts)])
    ties, reward_scale = rng.integers(0, 4, count).astype(np.float32) / 7, rng.uniform(0.5, 2, count)
    reference = -rng.uniform(2, 20, count).astype(np.float32)
    table = corpus.held(tokens, prompt_lengths[::siblings], lengths, np.bincount(row_C), reward, reference)
    return Examples(
        table,
        entries_C=np.arange(count, dtype=np.int32),
        prompts_C=row_C.astype(np.int32),
        cuts_C=np.zeros(count, np.int32),
        completions_C=PerCompletion(
            reward=reward,
            quantile=quantile,
            ties=ties,
            references=np.full(count, 7, np.int32),
            log_z=np.full(count, transforms.identity.log_z(BETA), np.float32),
            reward_scale=reward_scale.astype(np.float32),
            reference_log_prob=reference,
            length=lengths.astype(np.int32),
            weight=np.ones(count, np.float32),
            high=np.arange(count) % 2 == 0 if pairs else quantile > 0.5,
        ),
        sizes_U=np.full(count // 2 if pairs else count, 2 if pairs else 1, np.int8),
        counts={},
    )


def build_examples(rows: Iterable[Row], text: Text, view: View, transform: Any, **options: Any) -> Examples:
    """The completions that a view selects from rows; see `select` for the other arguments."""
    return select(corpus.tokenize(rows, text), view, transform, **options)


def names(table: Examples) -> tuple[str, ...]:
    """The name of each completion."""
    return tuple(map(table.name, range(len(table.entries_C))))


def units(table: Examples) -> tuple[tuple[int, ...], ...]:
    """The completions of each unit."""
    ends = np.cumsum(table.sizes_U, dtype=int)
    return tuple(tuple(range(end - size, end)) for end, size in zip(ends.tolist(), table.sizes_U.tolist(), strict=True))


def text_of(table: Examples, c: int) -> list[int]:
    """Tokens of a completion with its prompt before it."""
    return [*table.prompt(c).tolist(), *table.completion(c).tolist()]


def batches_of(plan: Plan) -> list[tuple[packing.Row, ...]]:
    """The rows of every batch of a plan."""
    return [plan.batch(index) for index in range(plan.steps)]


def only(table: Examples, kept_U: np.ndarray) -> Examples:
    """`table` with some of its units."""
    kept_C = np.repeat(kept_U, table.sizes_U)
    numbers = jax.tree.map(lambda values_C: values_C[kept_C], table.completions_C)
    columns = {name: getattr(table, name)[kept_C] for name in ("entries_C", "prompts_C", "cuts_C")}
    return table._replace(**columns, sizes_U=table.sizes_U[kept_U], completions_C=numbers)


def with_numbers(table: Examples, **changes: Any) -> Examples:
    """`table` with other values for fields of `PerCompletion`, [C] each."""
    return table._replace(completions_C=table.completions_C._replace(**changes))


def plan(table: Examples, **changes: Any) -> Plan:
    settings: dict[str, Any] = dict(batch_units=len(table.sizes_U), row_tokens=29, slots=4, row_multiple=1) | changes
    return plan_batches(table.packing_units(), **settings)


def batch(table: Examples, **changes: Any) -> Batch:
    """All of `table` as one batch."""
    return assemble(table, plan(table, **changes), 0)


def one_by_one(table: Examples) -> list[Batch]:
    """Every completion alone in a batch that is exactly as long as it is: nothing packed, nothing padded."""
    batches = []
    ends = np.asarray([0, 1])
    for c in range(len(table.entries_C)):
        read = int(table.prompt_lengths_C[c] + table.completions_C.length[c]) - 1
        batches.append(assemble(table, Plan(np.asarray([c]), ends, ends, ends, 1, read, 1, read, read), 0))
    return batches


def assert_trees_close(first: Any, second: Any, *, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Leaf by leaf, with the path of the leaf that differs."""
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for (path, a), (_, b) in zip(
        jax.tree_util.tree_leaves_with_path(first), jax.tree_util.tree_leaves_with_path(second), strict=True
    ):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol, atol, err_msg=jax.tree_util.keystr(path))


def assert_trees_equal(first: Any, second: Any) -> None:
    assert_trees_close(first, second, rtol=0, atol=0)


def largest(tree: Any) -> float:
    return max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(tree))
