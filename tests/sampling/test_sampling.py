"""Sampling: the distribution of the tokens, where completions end, and log-probs equal to those of scoring."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qrpo_jax.devices.mesh import make_mesh, parameter_shardings, place, row_sharding
from qrpo_jax.model import cache, decoder
from qrpo_jax.model.attention import cached, plain
from qrpo_jax.model.compute import Compute
from qrpo_jax.model.token_log_probs import NO_TARGET
from qrpo_jax.sampling import sampler
from qrpo_jax.sampling.draw import truncate
from qrpo_jax.training.state import stored_for_forward
from tests.helpers import sequences, tiny
from tests.helpers.row_log_probs import row_log_probs

LENGTHS = np.asarray([3, 7, 5], np.int32)
PROMPTS = np.random.default_rng(5).integers(3, 46, (3, 7)).astype(np.int32)
KEYS = jax.random.split(jax.random.key(0), 3)
ENDS = (2, 11, 17, 23)


GREEDY = {"temperature": 0, "end_tokens": (46,)}


@functools.cache
def compiled(**options):
    settings = dict(completions=5, max_new_tokens=11, temperature=0.8, end_tokens=ENDS) | options
    return jax.jit(sampler.make_sampler(tiny.GRAPH, **settings))


def draw(prompts=PROMPTS, lengths=LENGTHS, keys=KEYS, **options):
    return jax.device_get(compiled(**options)(tiny.parameters(), prompts, lengths, keys))


@functools.cache
def scorer(temperature):
    return jax.jit(lambda p, *arrays: row_log_probs(tiny.GRAPH, p, *arrays, temperature=temperature))


def laid_out(samples):
    """Tokens, layout and targets of rows with one prompt and completion each."""
    count, fan, width = samples.tokens_PxnxT.shape
    rows = np.zeros((4, count * fan, 7 + width), np.int32)
    for b in range(count * fan):
        p, n = divmod(b, fan)
        start, total = LENGTHS[p], LENGTHS[p] + samples.lengths_Pxn[p, n]
        rows[0, b, :start] = PROMPTS[p, :start]
        rows[0, b, start:total] = samples.tokens_PxnxT[p, n, : total - start]
        rows[1, b, :total], rows[2, b, :total], rows[3, b, start:total] = 1, np.arange(total), 1
    own = rows[3].astype(bool)
    return rows[0], sequences.layout(rows[1], rows[2], own), sequences.targets(rows[0], own)


@pytest.fixture(scope="module")
def samples():
    return draw()


@pytest.mark.parametrize("options", [{}, {"top_k": 7, "top_p": 0.9}, GREEDY])
def test_sampled_log_probs_are_scored_log_probs(options):
    """At the sampling temperature (greedy: at 1), whether or not top-k and top-p cut tokens away."""
    samples = draw(**options)
    temperature = 1.0 if options == GREEDY else 0.8
    scored = np.asarray(scorer(temperature)(tiny.parameters(), *laid_out(samples))).sum(1)
    np.testing.assert_allclose(samples.log_probs_Pxn.ravel(), scored, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("temperature", [1e-6, 1e-10, 1e-30, 1e-45])
def test_a_temperature_near_0_is_greedy_decoding_whose_tokens_are_certain(temperature):
    cold, greedy = draw(temperature=temperature, end_tokens=(46,)), draw(**GREEDY)
    np.testing.assert_array_equal(cold.tokens_PxnxT, greedy.tokens_PxnxT)
    np.testing.assert_allclose(cold.log_probs_PxnxT, 0, atol=1e-6)


def test_sampling_in_bfloat16_runs_and_gives_log_probs_near_the_scored_ones():
    """Near, because decoding with a cache and a full forward pass round differently in bfloat16."""
    half = Compute(jnp.bfloat16)
    samples = draw(compute=half)
    score = jax.jit(lambda p, *arrays: row_log_probs(tiny.GRAPH, p, *arrays, temperature=0.8, compute=half))
    scored = np.asarray(score(tiny.parameters(), *laid_out(samples))).sum(1)
    errors = np.abs(samples.log_probs_Pxn.ravel() - scored) / samples.lengths_Pxn.ravel()
    assert 0 < errors.max() < 0.05, errors


def test_finished_means_the_last_counted_token_is_the_only_end_token(samples):
    assert samples.finished_Pxn.any() and not samples.finished_Pxn.all(), "the seed must show both cases"
    for p, n in np.ndindex(samples.finished_Pxn.shape):
        tokens, length = samples.tokens_PxnxT[p, n], int(samples.lengths_Pxn[p, n])
        ends = np.isin(tokens[:length], ENDS)
        if samples.finished_Pxn[p, n]:
            assert ends[-1] and ends.sum() == 1, (p, n, tokens)
        else:
            assert length == 11 and not ends.any(), (p, n, tokens)
        assert (tokens[length:] == 0).all()


def test_a_prompts_samples_do_not_depend_on_its_batch_or_padding(samples):
    order = np.asarray([2, 0])
    wider = np.zeros((2, 13), np.int32)
    wider[:, :7] = PROMPTS[order]
    wider[:, 7:] = 45  # must not matter: padding
    other = draw(wider, LENGTHS[order], KEYS[order])
    np.testing.assert_array_equal(other.tokens_PxnxT, samples.tokens_PxnxT[order])
    np.testing.assert_allclose(other.log_probs_Pxn, samples.log_probs_Pxn[order], rtol=1e-5)


@pytest.mark.parametrize("prefill_tokens", [0, 4], ids=["whole", "pieces"])
@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 1, 2, 4)])
def test_devices_do_not_change_what_is_drawn(samples, sizes, prefill_tokens):
    """Of four prompts, the last one empty, so that a mesh can split them; `context` splits each piece of a prompt."""
    mesh = make_mesh(*sizes)
    prompts, lengths = np.pad(PROMPTS, ((0, 1), (0, 0))), np.pad(LENGTHS, (0, 1))
    keys = jax.random.wrap_key_data(jax.random.key_data(KEYS)[np.asarray([0, 1, 2, 0])])
    shardings = parameter_shardings(mesh, decoder.logical_axes(tiny.SETTINGS), tiny.parameters())
    parameters = jax.device_put(tiny.parameters(), shardings)
    rows = place((prompts, lengths), row_sharding(mesh))
    sample = compiled(compute=Compute(mesh=mesh), prefill_tokens=prefill_tokens)
    other = jax.device_get(sample(parameters, *rows, keys))
    np.testing.assert_array_equal(other.tokens_PxnxT[:3], samples.tokens_PxnxT)
    np.testing.assert_allclose(other.log_probs_Pxn[:3], samples.log_probs_Pxn, rtol=1e-5)


def test_devices_ask_each_other_only_whether_they_are_done():
    """A step that gathered caches or prompts would cost more than all it computes."""
    mesh = make_mesh(2, 1, 1, devices=jax.devices()[:2])
    prompts, lengths, keys = (
        np.zeros((14, 7), np.int32),
        np.full(14, 7, np.int32),
        jax.random.split(jax.random.key(0), 14),
    )
    shardings = parameter_shardings(mesh, decoder.logical_axes(tiny.SETTINGS), tiny.parameters())
    parameters = jax.device_put(tiny.parameters(), shardings)
    drawing = compiled(compute=Compute(mesh=mesh), slots=3)
    text = drawing.lower(parameters, *place((prompts, lengths), row_sharding(mesh)), keys).compile().as_text()
    loops = [line for line in text.splitlines() if "while/body" in line or "while/cond" in line]
    assert any("all-reduce(" in line for line in loops), "the loop ends when all are done"
    assert not [line for line in loops if re.search("(all-gather|all-to-all|collective-permute)[-a-z]*\\(", line)]


@pytest.mark.parametrize("slots", [1, 2, 3, 7, 14])
def test_the_number_of_slots_does_not_change_what_is_drawn(samples, slots):
    other = draw(slots=slots)
    np.testing.assert_array_equal(other.tokens_PxnxT, samples.tokens_PxnxT)
    np.testing.assert_array_equal(other.finished_Pxn, samples.finished_Pxn)
    np.testing.assert_allclose(other.log_probs_Pxn, samples.log_probs_Pxn, rtol=1e-5)
    assert samples.lengths_Pxn.sum() <= other.slot_steps


@pytest.mark.parametrize("tokens", [1, 3, 5, 7, 14, 20])
def test_prompts_read_some_at_a_time_give_the_same(samples, tokens):
    """Of three prompts of 7 places: one in pieces of 1, 3 or 4 tokens; one whole; two, of which one is read twice."""
    got = draw(prefill_tokens=tokens)
    for name in ("tokens_PxnxT", "lengths_Pxn", "finished_Pxn"):
        np.testing.assert_array_equal(getattr(got, name), getattr(samples, name), err_msg=name)
    np.testing.assert_allclose(got.log_probs_Pxn, samples.log_probs_Pxn, rtol=1e-5)


def test_weights_stored_as_they_are_used_draw_the_same():
    sample = jax.jit(make_bfloat16_sampler())
    stored = stored_for_forward(jax.tree.map(jnp.array, tiny.parameters()), jnp.bfloat16)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(stored)} == {"bfloat16", "float32"}, "norms stay as they are"
    wanted, got = (jax.device_get(sample(p, PROMPTS, LENGTHS, KEYS)) for p in (tiny.parameters(), stored))
    for name, one, other in zip(wanted._fields, wanted, got, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)


def make_bfloat16_sampler():
    settings = dict(completions=5, max_new_tokens=11, temperature=0.8, end_tokens=ENDS)
    return sampler.make_sampler(tiny.GRAPH, compute=Compute(dtype=jnp.bfloat16), **settings)


def test_most_slots_are_useful_where_lengths_are_skewed():
    """Most completions end early and some go on to the limit; without refilling, all wait for these."""
    rng = np.random.default_rng(11)
    prompts, lengths = rng.integers(3, 46, (61, 7)).astype(np.int32), np.full(61, 7, np.int32)
    options = dict(completions=8, max_new_tokens=47, temperature=1.5, end_tokens=tuple(range(3, 46, 4)))
    keys = jax.random.split(jax.random.key(2), 61)
    shares = {}
    for slots in (0, 16):
        drawing = jax.jit(sampler.make_sampler(tiny.GRAPH, **options, slots=slots))
        got = jax.device_get(drawing(tiny.parameters(), prompts, lengths, keys))
        shares[slots] = got.lengths_Pxn.sum() / got.slot_steps
        assert got.lengths_Pxn.max() > 4 * got.lengths_Pxn.mean(), "the lengths must be skewed"
    assert shares[16] > 0.8 > 2 * shares[0], shares


@pytest.mark.parametrize("slots", [0, 2, 5])
def test_completions_longer_than_a_block_of_the_ring_have_the_scored_log_probs(monkeypatch, slots):
    """Blocks of 8 places, and completions of up to 29 tokens: the ring goes round several times."""
    monkeypatch.setattr(cache, "RING_BLOCK", 8)
    monkeypatch.setattr(cached, "RING_BLOCK", 8)
    options = dict(completions=5, max_new_tokens=29, temperature=1.5, end_tokens=(2, 11, 17), slots=slots)
    drawing = jax.jit(sampler.make_sampler(tiny.GRAPH, **options))
    long = jax.device_get(drawing(tiny.parameters(), PROMPTS, LENGTHS, KEYS))
    assert long.lengths_Pxn.max() == 29 and len(np.unique(long.lengths_Pxn)) > 3, long.lengths_Pxn
    scored = np.asarray(scorer(1.5)(tiny.parameters(), *laid_out(long))).sum(1)
    np.testing.assert_allclose(long.log_probs_Pxn.ravel(), scored, rtol=2e-5, atol=3e-5)


def test_pieces_behind_the_longest_prompt_are_not_read():
    """Of 88 pieces one has tokens of the three prompts, each of which passes through two layers."""
    calls = []

    def counted(*arrays, **options):
        jax.debug.callback(lambda: calls.append(1))
        return plain.attend(*arrays, **options)

    wide = np.full((3, 700), 45, np.int32)
    wide[:, :7] = PROMPTS
    draw(wide, compute=Compute(attention=counted), prefill_tokens=8)
    jax.effects_barrier()
    assert len(calls) == 3 * tiny.SETTINGS.layers, len(calls)


@pytest.mark.parametrize("slides", [(True,) * 3, (True, False, True), (False, True, True)], ids=str)
@pytest.mark.parametrize(("window", "block"), [(3, 8), (8, 8), (5, 4), (13, 4), (40, 8)])
def test_layers_with_a_window_keep_no_more_than_it_and_have_the_scored_log_probs(monkeypatch, window, block, slides):
    monkeypatch.setattr(cache, "RING_BLOCK", block)
    monkeypatch.setattr(cached, "RING_BLOCK", block)
    settings = dataclasses.replace(tiny.SETTINGS, layers=3, sliding_window=window, sliding_layers=slides)
    graph, parameters = decoder.graph(settings), decoder.initial_parameters(settings, jax.random.key(3))
    k = jnp.zeros((3, 2, settings.kv_heads, 7, settings.head_dim))
    wide, narrow = cache.start_cache(k, k, jnp.ones(2, jnp.int32), 5, 29, settings, cache.Order(False, False)).rings
    assert (wide is None) == all(slides) and (wide is None or wide.k.shape[3] == -(-29 // block) * block + block)
    assert narrow.k.shape[0] == sum(slides) and narrow.k.shape[3] < max(block, min(window, 29) + 2 * block)
    drawing = jax.jit(
        sampler.make_sampler(
            graph, completions=5, max_new_tokens=29, temperature=1.5, end_tokens=(2, 11), slots=7, prefill_tokens=4
        )
    )
    long = jax.device_get(drawing(parameters, PROMPTS, LENGTHS, KEYS))
    assert long.lengths_Pxn.max() == 29 and len(np.unique(long.lengths_Pxn)) > 3, long.lengths_Pxn
    score = jax.jit(lambda p, *arrays: row_log_probs(graph, p, *arrays, temperature=1.5))
    scored = np.asarray(score(parameters, *laid_out(long))).sum(1)
    np.testing.assert_allclose(long.log_probs_Pxn.ravel(), scored, rtol=2e-5, atol=3e-5)


def test_the_first_completions_do_not_depend_on_how_many_are_drawn(samples):
    np.testing.assert_array_equal(draw(completions=2).tokens_PxnxT, samples.tokens_PxnxT[:, :2])


def test_empty_prompts_do_not_disturb_others(samples):
    """The last batch is filled up with rows of length 0."""
    prompts, lengths = np.zeros((3, 7), np.int32), np.asarray([0, 7, 0], np.int32)
    prompts[1] = PROMPTS[1]
    got = draw(prompts, lengths, KEYS)
    np.testing.assert_array_equal(got.tokens_PxnxT[1], samples.tokens_PxnxT[1])
    assert np.isfinite(got.log_probs_Pxn).all()


def test_other_keys_give_other_samples(samples):
    other = draw(keys=jax.random.split(jax.random.key(1), 3))
    assert (other.tokens_PxnxT != samples.tokens_PxnxT).any(-1).mean() > 0.8
    assert len({tokens.tobytes() for tokens in samples.tokens_PxnxT[0]}) == 5


def test_greedy_takes_the_argmax_of_the_full_forward():
    samples = draw(**GREEDY)
    tokens, layout, targets = laid_out(samples)

    def logits(parameters):
        model = nnx.merge(tiny.GRAPH, parameters)
        return model.logits(model(tokens, layout)[0])

    best = np.asarray(jax.jit(logits)(tiny.parameters())).argmax(-1)
    np.testing.assert_array_equal(targets[targets != NO_TARGET], best[targets != NO_TARGET])
    assert (samples.tokens_PxnxT == samples.tokens_PxnxT[:, :1]).all()


def test_top_k_of_one_is_greedy():
    one, greedy = draw(top_k=1, end_tokens=(46,)), draw(**GREEDY)
    np.testing.assert_array_equal(one.tokens_PxnxT, greedy.tokens_PxnxT)


def logits_BxV():
    return jnp.asarray(np.random.default_rng(6).normal(size=(5, 23)) * 2, jnp.float32)


@pytest.mark.parametrize("k", [1, 4, 22, 23, 0])
def test_top_k_keeps_the_k_largest(k):
    x = np.asarray(logits_BxV())
    got = np.asarray(truncate(logits_BxV(), k, 1.0))
    kept = np.isfinite(got)
    assert (kept.sum(1) == (k or 23)).all()
    for row in range(5):
        assert set(np.flatnonzero(kept[row])) == set(np.argsort(-x[row])[: k or 23])
    np.testing.assert_array_equal(got[kept], x[kept])


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.9, 0.999, 1.0])
def test_top_p_keeps_the_smallest_set_of_that_mass(p):
    probs = np.asarray(jax.nn.softmax(logits_BxV()))
    kept = np.isfinite(np.asarray(truncate(logits_BxV(), 0, p)))
    for row in range(5):
        inside = np.sort(probs[row][kept[row]])
        assert inside.sum() >= p - 1e-5 and (p == 1.0 or inside[1:].sum() < p), (row, inside.sum())
        assert kept[row].all() or inside.min() >= probs[row][~kept[row]].max()


def test_top_p_counts_mass_within_the_top_k():
    kept = np.isfinite(np.asarray(truncate(jnp.log(jnp.asarray([[0.4, 0.3, 0.2, 0.1]])), 2, 0.55)))
    # Of two tokens the first holds 4/7 > 0.55; without top-k it would hold 0.4.
    assert kept.tolist() == [[True, False, False, False]]


def test_frequencies_follow_the_tempered_distribution():
    """First tokens of 4000 completions: within 5 standard errors of softmax(logits / temperature)."""
    count, temperature = 4000, 0.5
    samples = draw(PROMPTS[:1], LENGTHS[:1], KEYS[:1], completions=count, max_new_tokens=1, temperature=temperature)

    def first(parameters):
        model = nnx.merge(tiny.GRAPH, parameters)
        hidden, _ = model(PROMPTS[:1, :3], sequences.one_a_row((1, 3)))
        return jax.nn.softmax(model.logits(hidden[0, -1]) / temperature)

    probs = np.asarray(jax.jit(first)(tiny.parameters()))
    share = np.bincount(samples.tokens_PxnxT.ravel(), minlength=46) / count
    error = np.sqrt(probs * (1 - probs) / count) + 1 / count
    assert (np.abs(share - probs) < 5 * error).all(), (np.abs(share - probs) / error).max()
