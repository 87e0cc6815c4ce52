"""Cases of attention backends, and how far apart two of them are."""

import jax
import jax.numpy as jnp
import numpy as np

LARGEST = np.iinfo(np.int32).max
# name: (heads, kv-heads, head size, window, scale, cap)
CASES = {
    "plain": (4, 2, 8, None, None, None),
    "one kv-head a head": (3, 3, 32, None, 0.7, None),
    "one kv-head": (4, 1, 16, 9, None, None),
    "window": (2, 2, 10, 7, None, None),
    "traced window": (2, 1, 16, jnp.int32(11), None, None),
    "no limit": (2, 1, 16, jnp.int32(LARGEST), None, None),
    "soft cap": (6, 2, 10, None, 0.6, 1.5),
    "soft cap and window": (4, 2, 128, jnp.int32(5), 0.1, 1.5),
}


def draw(rng, layout, heads, kv_heads, k_dim, dtype=np.float32):
    """Queries, keys, values, and the gradient of the output, which is 0 at padding as a model's is."""
    batch, length = layout.groups_BxL.shape
    q, k, v, d_out = (
        jnp.asarray(rng.normal(size=(batch, length, h, k_dim)), dtype) for h in (heads, kv_heads, kv_heads, heads)
    )
    return q, k, v, jnp.where((layout.groups_BxL > 0)[..., None, None], d_out, 0)


def both(attend, layout, start, window, arrays, d_out, queries=None, scale=None, cap=None):
    """Output, and gradients by queries, keys and values."""

    @jax.jit
    def run(start, arrays, d_out):
        def rows(q, k, v):
            return attend(q, k, v, queries or layout, layout, start, window, scale=scale, cap=cap)

        out, back = jax.vjp(rows, *arrays)
        return out, *back(d_out)

    return run(start, arrays, d_out)


def distance(got, want, layout):
    """Largest difference relative to the largest entry of each array; outputs at padding are ignored."""
    used = np.asarray(layout.groups_BxL > 0)[..., None, None]
    got, want = ([np.where(used, np.asarray(x, np.float64), 0.0) for x in xs] for xs in (got, want))
    return [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(got, want, strict=True)]
