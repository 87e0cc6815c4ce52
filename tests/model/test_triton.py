"""The Triton kernels equal the plain formula: on a GPU as compiled, elsewhere in Pallas's interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax.errors import UserError
from qrpo_jax.model import attention
from qrpo_jax.model.attention import plain, triton
from qrpo_jax.model.attention.triton import attend_with
from qrpo_jax.model.attention.triton_kernels import Options, Tiles, Tuning
from qrpo_jax.model.layout import Layout
from tests.helpers.packings import random_layout
from tests.helpers.samples import sampled

GPU = jax.default_backend() == "gpu"
SMALL = Tuning(Tiles(32, 16, 4, 2), Tiles(16, 32, 4, 2), Tiles(16, 32, 4, 2))
LARGEST = np.iinfo(np.int32).max
# name: (heads, kv-heads, head size, window, scale, cap)
CASES = {
    "plain": (4, 2, 16, None, None, None),
    "one kv-head a head": (3, 3, 32, None, 0.7, None),
    "one kv-head": (4, 1, 16, 9, None, None),
    "odd head size": (6, 2, 10, None, None, None),
    "window": (2, 2, 16, 7, None, None),
    "traced window": (2, 1, 16, jnp.int32(11), None, None),
    "no limit": (2, 1, 16, jnp.int32(LARGEST), None, None),
    "soft cap": (4, 2, 16, None, 0.6, 1.5),
    "soft cap and window": (4, 2, 16, jnp.int32(5), 0.6, 1.5),
}


def options(k_dim, scale, cap, tuning=SMALL):
    return Options(k_dim**-0.5 if scale is None else scale, cap, tuning, interpret=not GPU)


def draw(rng, layout, heads, kv_heads, k_dim, dtype=np.float32):
    """Queries, keys, values, and the gradient of the output, which is 0 at padding as a model's is."""
    batch, length = layout.groups_BxL.shape
    q, k, v, d_out = (
        jnp.asarray(rng.normal(size=(batch, length, h, k_dim)), dtype) for h in (heads, kv_heads, kv_heads, heads)
    )
    return q, k, v, jnp.where((layout.groups_BxL > 0)[..., None, None], d_out, 0)


def both(attend, q, k, v, d_out):
    """Output and gradients by q, k and v."""

    @jax.jit
    def run(q, k, v, d_out):
        out, back = jax.vjp(attend, q, k, v)
        return out, *back(d_out)

    return run(q, k, v, d_out)


def by_plain(layout, window, scale, cap, precise=True):
    def run(q, k, v):
        with jax.default_matmul_precision("highest" if precise else "default"):
            return plain.attend(q, k, v, layout, layout, 0, window, scale=scale, cap=cap)

    return run


def distance(got, want, layout):
    """Largest difference relative to the largest entry of each array; outputs at padding are ignored."""
    used = np.asarray(layout.groups_BxL > 0)[..., None, None]
    got, want = ([np.where(used, np.asarray(x, np.float64), 0.0) for x in xs] for xs in (got, want))
    return [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(got, want, strict=True)]


@pytest.mark.parametrize("case", sampled(CASES))
def test_float32_outputs_and_gradients(case):
    heads, kv_heads, k_dim, window, scale, cap = CASES[case]
    rng = np.random.default_rng(list(CASES).index(case))
    layout = random_layout(rng, rows=2, length=97, longest=23)
    arrays = draw(rng, layout, heads, kv_heads, k_dim)

    def run(q, k, v):
        return attend_with(options(k_dim, scale, cap), q, k, v, layout, layout, 0, window)

    errors = distance(both(run, *arrays), both(by_plain(layout, window, scale, cap), *arrays), layout)
    assert max(errors) < 1e-5, errors


@pytest.mark.parametrize("seed", range(3))
def test_bfloat16_is_as_close_to_float32_as_the_plain_formula_is(seed):
    rng = np.random.default_rng(seed)
    layout = random_layout(rng, rows=2, length=128, longest=40)
    exact = draw(rng, layout, 4, 2, 16)
    low = tuple(x.astype(jnp.bfloat16) for x in exact)
    exact = tuple(x.astype(jnp.float32) for x in low)

    def run(q, k, v):
        return attend_with(options(16, None, None), q, k, v, layout, layout, 0, None)

    want = both(by_plain(layout, None, None, None), *exact)
    ours = distance(both(run, *low), want, layout)
    plains = distance(both(by_plain(layout, None, None, None, precise=False), *low), want, layout)
    assert max(ours) < 1.5 * max(plains) and max(ours) < 0.02, (ours, plains)


def test_padding_returns_0_and_has_no_gradient_whatever_comes_back_for_it():
    rng = np.random.default_rng(5)
    layout = random_layout(rng, rows=2, length=97, longest=23)
    padding = np.asarray(layout.groups_BxL) == 0
    q, k, v, _ = draw(rng, layout, 4, 2, 16)

    def run(q, k, v):
        return attend_with(options(16, None, None), q, k, v, layout, layout, 0, None)

    out, d_q, d_k, d_v = (np.asarray(x) for x in both(run, q, k, v, jnp.ones_like(q)))
    assert padding.any()
    for x in (out, d_q, d_k, d_v):
        assert np.isfinite(x).all() and not x[padding].any()


def test_queries_of_a_part_of_the_row():
    """Rows split over the mesh: the parts' outputs are those of the row, and their gradients by keys add up to it."""
    rng = np.random.default_rng(6)
    layout = random_layout(rng, rows=2, length=96, longest=23)
    q, k, v, d_out = draw(rng, layout, 4, 2, 16)
    out, d_q, d_k, d_v = both(by_plain(layout, 9, None, None), q, k, v, d_out)
    total_k, total_v = jnp.zeros_like(d_k), jnp.zeros_like(d_v)
    for start in range(0, 96, 32):
        at = slice(start, start + 32)
        queries = Layout(*(x[:, at] for x in layout))

        def run(q, k, v, queries=queries, start=start):
            return attend_with(options(16, None, None), q, k, v, queries, layout, jnp.int32(start), 9)

        part = both(run, q[:, at], k, v, d_out[:, at])
        assert max(distance(part[:2], (out[:, at], d_q[:, at]), queries)) < 1e-5
        total_k, total_v = total_k + part[2], total_v + part[3]
    assert max(distance((total_k, total_v), (d_k, d_v), layout)) < 1e-5


@pytest.mark.parametrize("k_dim, dtype", [(64, "float32"), (128, "bfloat16"), (256, "bfloat16")])
@pytest.mark.skipif(not GPU, reason="the tiles for a GPU")
def test_the_tiles_of_a_gpu(k_dim, dtype):
    rng = np.random.default_rng(7)
    layout = random_layout(rng, rows=2, length=1024, longest=300)
    exact = draw(rng, layout, 4, 2, k_dim)
    low = tuple(x.astype(dtype) for x in exact)
    exact = tuple(x.astype(jnp.float32) for x in low)

    def run(q, k, v):
        return triton.attend(q, k, v, layout, layout, 0, 500, scale=None, cap=None)

    errors = distance(both(run, *low), both(by_plain(layout, 500, None, None), *exact), layout)
    assert max(errors) < (1e-5 if dtype == "float32" else 0.02), errors


def test_no_array_has_as_many_elements_as_queries_times_keys():
    length, heads = 1024, 2
    layout = random_layout(np.random.default_rng(8), rows=1, length=length, longest=100)

    def loss(q, k, v):
        return triton.attend(q, k, v, layout, layout, 0, None, scale=None, cap=None).sum()

    q, k = (jax.ShapeDtypeStruct((1, length, h, 64), jnp.bfloat16) for h in (heads, 1))
    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(q, k, k)
    sizes = {v.aval.shape: v.aval.size for e in every_equation(jaxpr.jaxpr) for v in e.outvars}
    assert max(sizes.values()) <= length * heads * 64, max(sizes, key=sizes.get)


def test_a_gpu_gets_it_by_default_and_no_other_device_gets_it():
    assert attention.choose("auto", "gpu") is attention.choose("triton", "gpu") is triton.attend
    with pytest.raises(UserError, match="attention is 'triton', which runs on gpu; these devices are cpu"):
        attention.choose("triton", "cpu")


def every_equation(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name != "pallas_call":  # its blocks live in registers
            for parameter in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(parameter, "jaxpr", parameter)
                if hasattr(inner, "eqns"):
                    yield from every_equation(inner)
