"""A step of the tiny policy on fourteen completions, and the comparison of two updates."""

import functools

import jax
import numpy as np

from qrpo_jax import losses, transforms
from qrpo_jax.data.batch import Batch
from qrpo_jax.data.per_token import PerToken
from qrpo_jax.devices.mesh import make_mesh, place, row_sharding
from qrpo_jax.model import decoder
from qrpo_jax.model.compute import Compute
from qrpo_jax.training.objectives import make_objective
from qrpo_jax.training.optimizer import Optimization, make_optimizer
from qrpo_jax.training.state import initial_state, parameter_layout, state_shardings
from qrpo_jax.training.step import LogProbSettings, Prediction, make_step
from tests.helpers import tiny, token_cases
from tests.helpers.row_log_probs import row_log_probs

BETA = 0.3
OPTIMIZATION = Optimization(
    learning_rate=0.01, schedule="cosine", warmup_share=0.0, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0
)
OPTIMIZER, _ = make_optimizer(OPTIMIZATION, steps=10)
OPTIONS = {
    "qrpo": {"beta": BETA, "transform": "identity", "loss": "mse"},
    "dpo": {"beta": BETA},
    "sft": {},
    **token_cases.OPTIONS,
}
# Eight rows of up to four completions, of uneven number, length and weight; two rows are empty.
TABLE = tiny.examples(14, pairs=True)
TABLE = tiny.with_numbers(TABLE, weight=np.asarray([1, 1, 3, 3, 2, 2, 1, 1, 5, 5, 0, 0, 1, 1], np.float32))
BATCH = tiny.batch(TABLE, row_multiple=8)


def with_tokens(batch: Batch, seed: int = 0) -> Batch:
    """The batch as a policy close to the tiny one has sampled it; the advantages of a completion's tokens are equal."""
    rng = np.random.default_rng(seed)
    segments_BxL = batch.layout.segments_BxL
    here, noise = segments_BxL > 0, rng.normal(size=(4, *segments_BxL.shape))
    old_BxL = np.asarray(row_log_probs(tiny.GRAPH, tiny.parameters(), *batch[:3])) + 0.3 * noise[0]
    advantage_BxS = rng.normal(size=batch.present_BxS.shape)
    advantage_BxL = np.take_along_axis(advantage_BxS, np.maximum(segments_BxL - 1, 0), 1)
    correction_BxL = np.minimum(np.exp(0.1 * noise[2]), 1.1)
    numbers = (old_BxL, old_BxL + 0.5 * noise[1], correction_BxL, advantage_BxL, noise[3], 2 * noise[3])
    return batch._replace(per_token_BxL=PerToken(*(np.where(here, x, 0).astype(np.float32) for x in numbers)))


def target(batch):
    return losses.calibrated_target(batch.completions_BxS.quantile, BETA, transforms.identity)


def predict(batch):
    return Prediction(target(batch), target(batch) / BETA)


@functools.cache
def compiled(name="qrpo", microbatches=1, mesh_sizes=None, settings=tiny.SETTINGS, remat="none"):
    objective = make_objective(name, **OPTIONS[name])
    mesh = make_mesh(*mesh_sizes) if mesh_sizes else None
    step = make_step(
        decoder.graph(settings),
        objective,
        OPTIMIZER,
        log_prob_settings=LogProbSettings(vocab_chunk=7, compute=Compute(remat=remat, mesh=mesh)),
        microbatches=microbatches,
        predict=predict if name == "qrpo" else None,
    )
    if mesh is None:
        return jax.jit(step)
    return jax.jit(step, out_shardings=(state_shardings(parameter_layout(mesh, settings), OPTIMIZER), None))


def update(batch=BATCH, name="qrpo", microbatches=1, mesh_sizes=None, settings=tiny.SETTINGS, remat="none"):
    """The state after one step, and its metrics; on a mesh of `mesh_sizes`, in the order of `make_mesh`, if given."""
    state = initial_state(tiny.parameters(settings), OPTIMIZER, seed=0)
    if mesh_sizes is not None:
        mesh = make_mesh(*mesh_sizes)
        state = jax.device_put(state, state_shardings(parameter_layout(mesh, settings), OPTIMIZER))
        batch = place(batch, row_sharding(mesh))
    new, metrics = compiled(name, microbatches, mesh_sizes, settings, remat)(state, batch)
    return jax.device_get(new), jax.device_get(metrics)


@functools.cache
def plain(name="qrpo"):
    return update(name=name)


def assert_same_update(got, want, *, reordered=False):
    """Loss, gradient norm, diagnostics and new parameters.

    Adam divides by the gradient's size, so a gradient that consists of rounding errors moves a parameter by a whole
    step of the learning rate. Such parameters are left out; their moments are compared instead.
    """
    (state, metrics), (other, others) = got, want
    names = set(metrics) - ({"losses_BxS"} | ({"padding", "tokens"} if reordered else set()))
    for name in names:
        np.testing.assert_allclose(metrics[name], others[name], rtol=2e-5, atol=2e-5, err_msg=name)
    tiny.assert_trees_close(state.optimizer, other.optimizer, rtol=2e-4, atol=2e-6)
    moved = jax.tree.map(
        lambda a, b, m: np.abs(a - b)[np.abs(m) > 1e-5].max(initial=0.0),
        *(state.parameters, other.parameters, moments(other)),
    )
    assert tiny.largest(moved) < 2e-4, moved


def moments(state):
    """Adam's first moments: 0.1 times the clipped gradient after one step."""
    parts = jax.tree.leaves(state.optimizer, is_leaf=lambda x: hasattr(x, "mu"))
    return next(part.mu for part in parts if hasattr(part, "mu"))
