"""Steps that train a value head: microbatches, devices and adapters change nothing, and it leaves the policy alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from qrpo_jax.devices.mesh import make_mesh, parameter_shardings, place, row_sharding
from qrpo_jax.hugging_face.lora_targets import make_lora
from qrpo_jax.model import decoder, value_head
from qrpo_jax.model.compute import Compute
from qrpo_jax.model.lora import join
from qrpo_jax.model.token_log_probs import NO_TARGET
from qrpo_jax.training.objectives import make_objective
from qrpo_jax.training.optimizer import Optimization, make_optimizer
from qrpo_jax.training.state import initial_state, parameter_layout, state_shardings
from qrpo_jax.training.step import LogProbSettings, batch_log_probs, make_step
from tests.helpers import tiny
from tests.helpers.row_log_probs import row_log_probs
from tests.helpers.steps import BATCH, OPTIMIZER, OPTIONS, TABLE, assert_same_update, moments
from tests.helpers.value_heads import actor_critic, filled, with_head

LORA = make_lora(tiny.SETTINGS, rank=3, alpha=5, targets=".*_proj")
LENGTH = 40  # divided by up to eight ways of `context`
slow = pytest.mark.slow


@functools.cache
def adapters():
    rng = np.random.default_rng(0)
    shapes = decoder.abstract_parameters(tiny.SETTINGS, LORA)
    return jax.tree.map(lambda s: jnp.asarray(0.2 * rng.normal(size=s.shape), jnp.float32), shapes)


def trained(lora):
    return tiny.parameters() if lora is None else adapters()


@functools.cache
def compiled(microbatches, mesh_sizes, remat, lora):
    mesh = make_mesh(*mesh_sizes) if mesh_sizes else None
    step = make_step(
        decoder.graph(tiny.SETTINGS, lora),
        actor_critic,
        OPTIMIZER,
        log_prob_settings=LogProbSettings(vocab_chunk=7, compute=Compute(remat=remat, mesh=mesh)),
        microbatches=microbatches,
    )
    return jax.jit(step, out_shardings=None if mesh is None else (shardings(mesh, lora), None))


def shardings(mesh, lora):
    return state_shardings(parameter_layout(mesh, tiny.SETTINGS, lora=lora, with_value_head=True), OPTIMIZER)


def update(batch=BATCH, microbatches=1, mesh_sizes=None, remat="none", lora=None):
    """The state after one step of policy or adapters with a filled head, and its metrics."""
    state = initial_state(with_head(trained(lora)), OPTIMIZER, seed=0)
    frozen = {} if lora is None else tiny.parameters()
    if mesh_sizes is not None:
        mesh = make_mesh(*mesh_sizes)
        state, batch = jax.device_put(state, shardings(mesh, lora)), place(batch, row_sharding(mesh))
        if frozen:
            frozen = jax.device_put(frozen, parameter_shardings(mesh, decoder.logical_axes(tiny.SETTINGS), frozen))
    return jax.device_get(compiled(microbatches, mesh_sizes, remat, lora)(state, batch, frozen))


@functools.cache
def plain(lora=None):
    return update(lora=lora)


@pytest.mark.parametrize("lora", [None, LORA], ids=["all", "lora"])
def test_a_step_moves_head_and_policy(lora):
    """What other tests compare is no rounding error."""
    state, metrics = plain(lora)
    of_policy, of_head = value_head.split(moments(state))
    assert tiny.largest(of_head["kernel"]) > 1e-3 and abs(of_head["bias"]) > 1e-4, of_head
    assert tiny.largest(of_policy) > 1e-3 and metrics["gradient_norm"] > 1


@pytest.mark.parametrize("microbatches", [2, pytest.param(8, marks=slow)])
def test_microbatches_change_nothing_though_their_weights_are_uneven(microbatches):
    weights = (BATCH.completions_BxS.weight * BATCH.present_BxS).reshape(-1, microbatches, 4).sum((0, 2))
    assert len(set(weights.tolist())) > 1, weights
    assert_same_update(update(microbatches=microbatches), plain(), reordered=True)


# Sizes in the order of `make_mesh`: data, fsdp, tensor, context, replica.
@pytest.mark.parametrize(
    "sizes, microbatches, remat",
    [
        ((8, 1, 1), 1, "none"),
        ((2, 2, 2), 2, "full"),
        ((1, 2, 2, 2), 1, "none"),
        *(
            pytest.param(*case, marks=slow)
            for case in (
                ((1, 1, 1, 8), 2, "attention"),
                ((4, 1, 2), 1, "dots"),
                ((1, 2, 2, 1, 2), 1, "none"),
                ((4, 1, 1, 2), 1, "offload"),
            )
        ),
    ],
)
def test_eight_devices_are_one_device(sizes, microbatches, remat):
    batch = tiny.batch(TABLE, row_tokens=LENGTH, row_multiple=16)
    assert_same_update(update(batch, microbatches, sizes, remat), plain(), reordered=True)


@pytest.mark.parametrize("sizes, microbatches", [((2, 2, 2), 1), pytest.param((1, 2, 2, 2), 2, marks=slow)])
def test_eight_devices_are_one_device_with_adapters(sizes, microbatches):
    batch = tiny.batch(TABLE, row_tokens=LENGTH, row_multiple=16)
    assert_same_update(update(batch, microbatches, sizes, lora=LORA), plain(LORA), reordered=True)


def test_the_loss_and_its_gradient_are_those_computed_by_hand():
    """Completion by completion and token by token; the head's slope is Σ error · hidden state."""
    policy, head = tiny.parameters(), filled()
    log_probs_BxL = np.asarray(row_log_probs(tiny.GRAPH, policy, *BATCH[:3]))
    hidden_BxLxD = np.asarray(hidden_states(policy), np.float64)
    kernel, bias = np.asarray(head["kernel"], np.float64), float(head["bias"])
    c, loss, weights, of_kernel, of_bias = BATCH.completions_BxS, 0.0, 0.0, np.zeros(26), 0.0
    for b, s in np.argwhere(BATCH.present_BxS):
        tokens = np.flatnonzero((BATCH.layout.segments_BxL[b] == s + 1) & (BATCH.targets_BxL[b] != NO_TARGET))
        weights += c.weight[b, s]
        for l in tokens:
            error = c.reward[b, s] - hidden_BxLxD[b, l] @ kernel - bias
            share = c.weight[b, s] / len(tokens)
            loss += share * (error**2 / 2 - error * log_probs_BxL[b, l])
            of_kernel, of_bias = of_kernel - share * error * hidden_BxLxD[b, l], of_bias - share * error
    descent = optax.sgd(1.0)
    step = jax.jit(make_step(tiny.GRAPH, actor_critic, descent, log_prob_settings=LogProbSettings()))
    state, metrics = step(initial_state(with_head(), descent, seed=0), BATCH)
    np.testing.assert_allclose(metrics["loss"], loss / weights, rtol=1e-5)
    got = jax.tree.map(lambda old, new: np.asarray(old - new), head, value_head.split(state.parameters)[1])
    np.testing.assert_allclose(got["kernel"], of_kernel / weights, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got["bias"], of_bias / weights, rtol=1e-4)


@jax.jit
def hidden_states(policy):
    return nnx.merge(tiny.GRAPH, policy)(BATCH.tokens_BxL, BATCH.layout)[0]


@pytest.mark.parametrize("name", ["qrpo", "sft"])
def test_a_head_that_the_loss_ignores_changes_no_update_of_the_policy_and_does_not_move(name):
    """Updates are of 0.01. In float64, because Adam divides by a gradient's size, which magnifies rounding."""
    with jax.enable_x64(True):
        settings = LogProbSettings(vocab_chunk=7, compute=Compute(jnp.float64))
        objective = make_objective(name, **OPTIONS[name])
        step = jax.jit(make_step(tiny.GRAPH, objective, OPTIMIZER, log_prob_settings=settings))
        ours, both = (jax.tree.map(lambda x: x.astype(np.float64), tree) for tree in (tiny.parameters(), with_head()))
        alone, _ = step(initial_state(ours, OPTIMIZER, seed=0), BATCH)
        beside, _ = step(initial_state(both, OPTIMIZER, seed=0), BATCH)
    policy, head = value_head.split(beside.parameters)
    assert {x.dtype for x in jax.tree.leaves(policy)} == {jnp.dtype("float64")}
    tiny.assert_trees_close(policy, alone.parameters, rtol=0, atol=1e-12)
    tiny.assert_trees_equal(head, filled())  # weight decay leaves it alone too


def test_weight_decay_does_not_pull_values_towards_0():
    options = Optimization(0.1, schedule="constant", warmup_share=0.0, b1=0.9, b2=0.9, weight_decay=0.5, clip_norm=0)
    optimizer, _ = make_optimizer(options, steps=1)
    parameters = with_head()
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, parameters), optimizer.init(parameters), parameters)
    of_policy, of_head = value_head.split(updates)
    assert tiny.largest(of_head) == 0 and tiny.largest(of_policy["embedding"]) > 0.01


def test_outside_of_a_step_values_and_log_probs_are_those_of_the_step():
    """Of a batch before it is trained on, as advantages need them; two programs differ by the rounding of float32."""
    seen = []

    def watched(log_probs, c):
        jax.debug.callback(lambda *found: seen.append(found), log_probs.token, log_probs.value)
        return actor_critic(log_probs, c)

    settings = LogProbSettings(vocab_chunk=7)
    found = jax.jit(lambda p, b: batch_log_probs(tiny.GRAPH, p, b, settings))(with_head(), BATCH)
    step = jax.jit(make_step(tiny.GRAPH, watched, OPTIMIZER, log_prob_settings=settings))
    jax.block_until_ready(step(initial_state(with_head(), OPTIMIZER, seed=0), BATCH))
    jax.effects_barrier()
    for got, want in zip(seen[0], (found.token, found.value), strict=True):
        assert np.std(want) > 0.5
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=2e-6)
    joined = join(tiny.parameters(), with_head(adapters()))
    adapted = batch_log_probs(decoder.graph(tiny.SETTINGS, LORA), joined, BATCH, settings)
    assert adapted.value.shape == BATCH.tokens_BxL.shape
    assert batch_log_probs(tiny.GRAPH, tiny.parameters(), BATCH, settings).value is None
