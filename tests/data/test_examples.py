"""Views of rows: the completions that are selected, and the rank of each among its references."""

import dataclasses
import itertools

import numpy as np
import pytest

from qrpo_jax import partition, transforms
from qrpo_jax.data import ranking
from qrpo_jax.data.packing import plan_batches
from qrpo_jax.data.rows import Completion, Message, Row
from qrpo_jax.data.text import make_text
from qrpo_jax.data.views import View, pick_units, unit_weights
from qrpo_jax.data.vocabulary import vocabulary_tokenizer
from qrpo_jax.errors import UserError
from tests.helpers.samples import sampled
from tests.helpers.tiny import build_examples, names, text_of, units

TOKENIZER = vocabulary_tokenizer([chr(97 + i) for i in range(26)])
TEXT = make_text(TOKENIZER, "plain", (TOKENIZER.eos_token_id,))
NONE = np.zeros(0, np.int32)
VIEW = View(max_tokens=2048, over_long="drop")


def completion(reward, source="reference", tokens=NONE, finished=True, text="abc"):
    return Completion(text, np.asarray(tokens, np.int32), finished, source, reward, -3.0, -5.0 - abs(reward))


def row(name, rewards, *, sources=None, extra=(), prompt="xyz", **options):
    sources = sources or ["reference"] * len(rewards)
    completions = tuple(completion(r, s, **options) for r, s in zip(rewards, sources, strict=True))
    return Row(name, (Message("user", prompt),), "", completions, np.asarray(extra, np.float32))


def rows(count=7, seed=0, ties=False):
    """Rows of 4 to 7 reference completions, one dataset completion each, and up to two further rewards."""
    rng = np.random.default_rng(seed)
    result = []
    for i in range(count):
        n = int(rng.integers(4, 8))
        rewards = rng.integers(0, 4, n + 1) / 3 if ties else rng.normal(size=n + 1)
        rewards = rewards.astype(np.float32).tolist()
        sources = ["reference"] * n
        sources.insert(int(rng.integers(0, n + 1)), "dataset")
        result.append(row(f"r{i}", rewards, sources=sources, extra=rng.normal(size=i % 3)))
    return result


def built(data, transform="identity", **view):
    return build_examples(data, TEXT, VIEW._replace(**view), transforms.TRANSFORMS[transform])


def by_hand(data, transform, *, reference_count=0, exclude_own=True, estimator="ecdf", ties="upper"):
    """name -> (quantile, share of ties), one completion at a time."""
    expected = {}
    for r in data:
        for i, c in enumerate(r.completions):
            pool = [(j, x.reward) for j, x in enumerate(r.completions) if x.source == "reference"]
            pool += [(None, float(x)) for x in r.reference_rewards]
            pool = pool[:reference_count] if reference_count else pool
            others = np.asarray([x for j, x in pool if not (exclude_own and j == i)], np.float32)
            reward, n = np.float32(c.reward), len(others)
            rank = (others < reward).sum() + (others == reward).sum() * {"upper": 1, "mid": 0.5}[ties]
            if estimator == "midpoint":
                quantile = (rank + 0.5) / (n + 1)
            else:
                low, high = {"none": (0, 1), "lower": (1 / n, 1), "both": (1 / n, 1 - 1 / n)}[transform.clamp]
                quantile = np.clip(rank / n, low, high)
            expected[f"{r.id}/{i}"] = quantile, (others == reward).mean()
    return expected


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "transform, options",
    [
        ("identity", {}),
        ("log", {"exclude_own": False}),
        ("normal-icdf", {"reference_count": 3}),
        ("identity", {"ties": "mid", "reference_count": 5, "exclude_own": False}),
        ("normal-icdf", {"estimator": "midpoint", "ties": "mid"}),
    ],
)
def test_quantiles_and_ties_equal_counting_by_hand(transform, options, tied):
    data = rows(ties=tied)
    table = built(data, transform, **options)
    expected = by_hand(data, transforms.TRANSFORMS[transform], **options)
    assert list(names(table)) == list(expected)
    got = np.stack([table.completions_C.quantile, table.completions_C.ties], 1)
    np.testing.assert_allclose(got, list(expected.values()), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("partition", ["population", "empirical"])
def test_many_references_of_one_row_make_parts_small_and_change_no_number(monkeypatch, partition):
    """Sets are padded to the longest, so one row decides how many fit the memory."""
    data = [*rows(), row("long", [0.25, 0.5], extra=np.linspace(0, 1, 41))]
    options = {"beta": lambda length_C: np.float32(0.5)}
    view, transform = VIEW._replace(partition=partition), transforms.TRANSFORMS["scaled-normal-icdf"]
    whole = build_examples(data, TEXT, view, transform, **options).completions_C
    sizes, sets = [], ranking.References.sets

    def measured(references, row_B):
        found = sets(references, row_B)
        sizes.append(found[0].size)
        return found

    monkeypatch.setattr(ranking, "PART_REWARDS", 150)
    monkeypatch.setattr(ranking.References, "sets", measured)
    parts = build_examples(data, TEXT, view, transform, **options).completions_C
    assert len(sizes) > 10 and max(sizes) <= 150, sizes
    for name in ("quantile", "ties", "log_z", "reward_scale"):
        one, other = getattr(whole, name), getattr(parts, name)
        assert one.dtype == other.dtype == np.float32, (name, one.dtype, other.dtype)
        np.testing.assert_allclose(one, other, rtol=1e-6, err_msg=name)


def test_a_reward_is_excluded_only_where_the_completion_is_a_reference():
    """A completion of the data set is not among the references, not even where its reward equals a reference's."""
    data = [row("r", [1.0, 2.0, 2.0, 3.0], sources=["reference", "dataset", "reference", "reference"])]
    table = built(data)
    np.testing.assert_allclose(table.completions_C.quantile, [0 / 2, 2 / 3, 1 / 2, 2 / 2])
    np.testing.assert_allclose(built(data, exclude_own=False).completions_C.quantile, [1 / 3, 2 / 3, 2 / 3, 3 / 3])


@pytest.mark.parametrize("count", [2, 3, 50])
def test_completions_of_a_row_without_references_are_ranked_among_the_others(count):
    rng = np.random.default_rng(count)
    data = [row(f"r{i}", rng.integers(0, 5, count).tolist(), sources=["dataset"] * count) for i in range(3)]
    same = [row(r.id, [c.reward for c in r.completions]) for r in data]
    own, sampled = built(data).completions_C, built(same).completions_C
    np.testing.assert_array_equal(own.quantile, sampled.quantile)
    np.testing.assert_array_equal(own.references, count - 1)
    first = [c.reward for c in data[0].completions]
    np.testing.assert_allclose(own.quantile[0], np.mean([x <= first[0] for x in first[1:]]), rtol=1e-6)
    given = [dataclasses.replace(r, reference_rewards=np.float32([2.0])) for r in data]
    (
        np.testing.assert_array_equal(built(given).completions_C.references, 1),
        "references that are given are the only ones",
    )


def test_an_order_makes_pairs_until_all_completions_have_rewards():
    unscored = dataclasses.replace(row("r", [np.nan] * 4, sources=["dataset"] * 4), preferences=((2, 0), (1, 3)))
    view = VIEW._replace(units="random_pairs")
    assert pick_units(unscored, view, 0) == [(2, 0), (1, 3)]
    assert pick_units(unscored, VIEW._replace(units="best_worst"), 0) == [(2, 0)]
    assert pick_units(unscored, view._replace(first=3), 0) == [(2, 0)]
    scored = dataclasses.replace(row("r", [0.0, 1.0, 2.0, 3.0], sources=["dataset"] * 4), preferences=((0, 3),))
    assert pick_units(scored, VIEW._replace(units="best_worst"), 0) == [(3, 0)]
    table = build_examples([unscored], TEXT, view, transforms.identity, need_references=False)
    assert names(table) == ("r/2", "r/0", "r/1", "r/3") and units(table) == ((0, 1), (2, 3))
    with pytest.raises(ValueError, match="the reward is nan"):
        build_examples([unscored], TEXT, view, transforms.identity)


def test_random_ties_lie_between_the_ranks_and_repeat_with_the_seed():
    data = rows(ties=True)
    low, high = (by_hand(data, transforms.identity, ties=t) for t in ("mid", "upper"))
    high = np.asarray([q for q, _ in high.values()])
    low = 2 * np.asarray([q for q, _ in low.values()]) - high
    drawn = [built(data, ties="random", seed=s).completions_C.quantile for s in (0, 0, 1)]
    assert ((drawn[0] >= low - 1e-6) & (drawn[0] <= high + 1e-6)).all()
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


def test_reward_scale_is_each_prompts_spread_over_the_mean_spread():
    data = rows()
    spread = []
    for r in data:
        rewards = [c.reward for c in r.completions if c.source == "reference"] + r.reference_rewards.tolist()
        spread.append(np.std(rewards, ddof=1))
    table = built(data, "scaled-normal-icdf")
    expected = [s / np.mean(spread) for s, r in zip(spread, data, strict=True) for _ in r.completions]
    np.testing.assert_allclose(table.completions_C.reward_scale, expected, rtol=1e-5)


def test_equal_rewards_everywhere_have_no_scale():
    with pytest.raises(ValueError, match="no scale"):
        built([row("r", [0.5] * 4)], "scaled-normal-icdf")


def test_singles_are_all_completions_alone_and_first_limits_them():
    data = rows()
    assert [len(u) for u in units(built(data))] == [1] * sum(len(r.completions) for r in data)
    table = built(data, first=2)
    assert names(table) == tuple(f"{r.id}/{i}" for r in data for i in range(2))
    # All references still count in their ranks.
    full = by_hand(data, transforms.identity)
    np.testing.assert_allclose(table.completions_C.quantile, [full[name][0] for name in names(table)], rtol=1e-6)


def test_best_and_worst_make_one_pair_the_better_first():
    data = rows()
    table = built(data, units="best_worst")
    for r, (w, l) in zip(data, units(table), strict=True):
        rewards = np.asarray([c.reward for c in r.completions])
        assert (names(table)[w], names(table)[l]) == (f"{r.id}/{rewards.argmax()}", f"{r.id}/{rewards.argmin()}")
    assert table.completions_C.high.tolist() == [True, False] * len(data)
    limited = built(data, units="best_worst", first=3)
    assert all(int(name.split("/")[1]) < 3 for name in names(limited))


def test_random_pairs_are_disjoint_ordered_and_repeat_with_the_seed():
    data = rows(ties=True)
    for r in data:
        pairs = pick_units(r, VIEW._replace(units="random_pairs"), 0)
        used = [i for pair in pairs for i in pair]
        assert len(used) == len(set(used)) == len(r.completions) // 2 * 2
        assert all(r.completions[w].reward >= r.completions[l].reward for w, l in pairs)
    draws = [names(built(data, units="random_pairs", seed=s)) for s in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_rows_without_a_pair_are_counted():
    table = build_examples([row("r", [1.0])], TEXT, VIEW._replace(units="best_worst"), None)
    assert units(table) == () and table.counts["rows without a pair"] == 1


@pytest.mark.parametrize("ties", ["upper", "mid"])
@pytest.mark.parametrize("estimator", ["ecdf", "midpoint"])
@pytest.mark.parametrize("transform", ["identity", "normal-icdf"])
def test_with_empirical_log_z_exp_of_the_target_over_beta_averages_to_one_a_prompt(transform, estimator, ties):
    """Exactly, whatever the ties: sum over a prompt's references of exp(f(R_q) / beta - log Z) = n."""
    beta = 0.3
    rewards = [[c.reward for c in r.completions if c.source == "reference"] for r in rows(11, ties=True)]
    data = [row(f"r{i}", values) for i, values in enumerate(rewards)]
    view = VIEW._replace(estimator=estimator, ties=ties, partition="empirical")
    chosen = transforms.TRANSFORMS[transform]
    table = build_examples(data, TEXT, view, chosen, beta=lambda length_C: beta)
    terms = np.exp(np.asarray(chosen.apply(table.completions_C.quantile), float) / beta - table.completions_C.log_z)
    owners = np.asarray([name.split("/")[0] for name in names(table)])
    for owner in np.unique(owners):
        here = owners == owner
        assert terms[here].mean() == pytest.approx(1, rel=1e-5), (owner, terms[here])
        assert np.ptp(table.completions_C.log_z[here]) < 1e-5, table.completions_C.log_z[here]


@pytest.mark.parametrize(
    "transform, name",
    sampled(itertools.product(["identity", "scaled-normal-icdf"], ["population", "finite_sample", "empirical"])),
)
def test_log_z_belongs_to_each_completions_beta_and_references(name, transform):
    data = rows(ties=True)
    chosen = transforms.TRANSFORMS[transform]
    lengths = []

    def beta(length_C):
        lengths.append(length_C)
        return 2.0 / length_C

    for i, r in enumerate(data):
        texts = [dataclasses.replace(c, text="abc" * (1 + (i + j) % 3)) for j, c in enumerate(r.completions)]
        data[i] = dataclasses.replace(r, completions=tuple(texts))
    table = build_examples(data, TEXT, VIEW._replace(partition=name, ties="mid"), chosen, beta=beta)
    np.testing.assert_array_equal(lengths[0], table.completions_C.length)
    assert len(set(table.completions_C.length.tolist())) == 3
    for c, label in enumerate(names(table)):
        r, j = data[int(label.split("/")[0][1:])], int(label.split("/")[1])
        others = [x.reward for k, x in enumerate(r.completions) if x.source == "reference" and k != j]
        others = np.asarray([*others, *r.reference_rewards], np.float32)
        assert table.completions_C.references[c] == len(others)
        scaled = transforms.scale_by(chosen, float(table.completions_C.reward_scale[c]))
        beta_of_c = float(2.0 / table.completions_C.length[c])
        want = partition.log_z(name, scaled, beta_of_c, r.completions[j].reward, others, ties="mid")
        assert table.completions_C.log_z[c] == pytest.approx(float(want), rel=1e-5), label


def test_a_beta_without_a_partition_function_is_refused_unless_ranks_bound_it():
    data = rows()
    view, logit = VIEW, transforms.TRANSFORMS["logit"]
    with pytest.raises(
        ValueError, match="'logit' has no finite partition function at beta = 0.5: beta must be above 1"
    ):
        build_examples(data, TEXT, view, logit, beta=lambda length_C: 0.5)
    bounded = build_examples(data, TEXT, view._replace(partition="finite_sample"), logit, beta=lambda length_C: 0.5)
    assert np.isfinite(bounded.completions_C.log_z).all()


@pytest.mark.parametrize(
    "selector, expected",
    [("both", {(0.5, 0.5)}), ("chosen", {(1, 0)}), ("rejected", {(0, 1)}), ("random", {(1, 0), (0, 1)})],
)
def test_selectors_set_the_weights_of_pairs_and_singles_keep_weight_one(selector, expected):
    table = built(rows(31), units="best_worst", side=selector)
    assert {tuple(pair) for pair in table.completions_C.weight.reshape(-1, 2).tolist()} == expected
    assert (built(rows(), side=selector).completions_C.weight == 1).all()


def test_a_pair_is_cut_to_one_prompt():
    data = [row("r", [2.0, 1.0], tokens=[5, 6, 7])]
    long = dataclasses.replace(data[0].completions[1], tokens=np.asarray([5, 6, 7, 8, 9], np.int32))
    data = [dataclasses.replace(data[0], completions=(data[0].completions[0], long))]
    view = {"units": "best_worst", "max_tokens": 8, "over_long": "truncate_prompt_left"}
    whole, table = built(data, units="best_worst"), built(data, **view)
    prompts = [t.prompt(c).tolist() for t in (whole, table) for c in range(2)]
    assert prompts[2] == prompts[3] and len(prompts[2]) == 3 < len(prompts[0]), prompts
    assert table.counts["prompts cut"] == 2


def test_singles_are_high_above_one_half():
    table = built(rows())
    np.testing.assert_array_equal(table.completions_C.high, table.completions_C.quantile > 0.5)


def test_tokens_are_prompt_then_completion_with_the_end_only_if_it_ended():
    data = [row("r", [1.0], text="ab", finished=False), row("s", [1.0], text="ba"), row("t", [1.0], tokens=[9, 8, 7])]
    table = build_examples(data, TEXT, VIEW, None)
    bos, end = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id
    prompt = [bos, *TEXT.encode("xyz")]
    a, b = TEXT.encode("ab")
    bodies = [[a, b], [b, a, end], [9, 8, 7]]
    for c, body in enumerate(bodies):
        assert text_of(table, c) == prompt + body
        assert table.completions_C.length[c] == len(body)
    assert table.counts["cut by length limit"] == 1


def test_completions_that_are_too_long_are_dropped_with_their_pair_and_counted():
    long = row("long", [1.0, 2.0, 3.0])
    bodies = [[5] * 9, [5] * 2, [5] * 3]
    long = dataclasses.replace(
        long,
        completions=tuple(
            dataclasses.replace(c, tokens=np.asarray(t, np.int32))
            for c, t in zip(long.completions, bodies, strict=True)
        ),
    )
    # The prompt has 4 tokens, so the first completion makes 13.
    singles = built([long], max_tokens=12)
    assert names(singles) == ("long/1", "long/2") and singles.counts["dropped: too long"] == 1
    # Its reward still counts as a reference.
    np.testing.assert_allclose(singles.completions_C.quantile, [1 / 2, 1.0])
    pair = built([long], max_tokens=12, units="best_worst")
    assert units(pair) == () and pair.counts["dropped: too long"] == 2 and len(pair.completions_C.quantile) == 0


def test_prompts_are_cut_on_the_left_and_counted_and_never_vanish():
    data = [row("r", [1.0, 2.0], tokens=[5] * 9), row("s", [1.0, 2.0], tokens=[5] * 12)]
    table = built(data, max_tokens=12, over_long="truncate_prompt_left")
    assert names(table) == ("r/0", "r/1") and table.prompt_lengths_C.tolist() == [3, 3]
    # The BOS token stays; the oldest words go.
    assert text_of(table, 0) == [TEXT.tokenizer.bos_token_id, *TEXT.encode("yz"), *[5] * 9]
    assert table.counts["prompts cut"] == 2 and table.counts["dropped: too long"] == 2


def test_units_of_a_row_can_share_their_prompt_unless_it_was_cut_differently():
    long = row("r", [3.0, 2.0, 1.0], tokens=[5, 6, 7])
    cut = dataclasses.replace(long.completions[1], tokens=np.asarray([5, 6, 7, 8, 9], np.int32))
    data = [
        dataclasses.replace(long, completions=(long.completions[0], cut, long.completions[2])),
        row("s", [1.0, 2.0]),
    ]
    table = built(data, max_tokens=8, over_long="truncate_prompt_left")
    assert table.prompts_C.tolist() == [0, 1, 0, 2, 2]
    for c, d in itertools.combinations(range(5), 2):
        prompts = [t.tolist() for t in (table.prompt(c), table.prompt(d))]
        if table.prompts_C[c] == table.prompts_C[d]:
            assert prompts[0] == prompts[1], (c, d)
        elif names(table)[c][0] == names(table)[d][0]:
            assert prompts[0] != prompts[1], (c, d)


def test_tokens_of_units_add_up_over_pairs_with_and_without_a_shared_prompt():
    table = built(rows(), units="best_worst")
    packed = table.packing_units()
    prompt, length = table.prompt_lengths_C, table.completions_C.length
    for u, (w, l) in enumerate(units(table)):
        assert packed.tokens_U(share=True)[u] == prompt[w] - 1 + length[w] + length[l]
        assert packed.tokens_U(share=False)[u] == 2 * (prompt[w] - 1) + length[w] + length[l]
    assert (packed.sizes_U == 2).all()


@pytest.mark.parametrize("transform", ["identity", "scaled-normal-icdf"])
@pytest.mark.parametrize("data, max_tokens", [([], 64), (rows(3), 2)])
def test_where_no_completion_is_left_examples_are_empty(transform, data, max_tokens):
    """The packing plan then says so, in one line for every transform."""
    view, beta = VIEW._replace(max_tokens=max_tokens), lambda length_C: np.float32(0.5)
    table = build_examples(data, TEXT, view, transforms.TRANSFORMS[transform], beta=beta)
    assert len(table.packing_units()) == 0 and table.counts["completions"] == 0
    assert {len(values) for values in table.completions_C} == {0}
    with pytest.raises(UserError, match="nothing to pack"):
        plan_batches(table.packing_units(), batch_units=3, row_tokens=64, slots=4)


def test_without_a_transform_nothing_is_ranked_and_rewards_may_be_nan():
    table = build_examples([row("r", [float("nan")])], TEXT, VIEW, None)
    assert np.isnan(table.completions_C.quantile).all() and np.isnan(table.completions_C.reward).all()


@pytest.mark.parametrize(
    "bad, transform, view, message",
    [
        (row("r", [1.0, 2.0], prompt=" \n"), "identity", {}, "'r': the prompt is empty"),
        (row("r", []), "identity", {}, "'r': no completion"),
        (row("r", [1.0, float("nan")]), "identity", {}, "completion 1: the reward is nan"),
        (row("r", [1.0, float("inf")]), "identity", {}, "completion 1: the reward is inf"),
        (row("r", [1.0], text=""), "identity", {}, "neither text nor tokens"),
        (
            row("r", [1.0]),
            "normal-icdf",
            {"exclude_own": False},
            "n = 1 .*'normal-icdf' with .* at least 2",
        ),
        (row("r", [1.0, 2.0]), "normal-icdf", {}, "n = 1 .*'normal-icdf' with .* at least 2"),
        (row("r", [1.0, 2.0, 3.0]), "scaled-normal-icdf", {"reference_count": 1}, "n = 0 "),
        (row("r", [1.0]), "identity", {}, "n = 0 .*'identity' with estimator 'ecdf' needs at least 1"),
        (row("r", [1.0, 2.0], sources=["policy"] * 2), "identity", {}, "n = 0 "),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused_in_one_line(bad, transform, view, message):
    with pytest.raises(ValueError, match=message) as caught:
        built([*rows(2), bad], transform, **view)
    assert "\n" not in str(caught.value)


def test_pairs_of_equal_reward_are_counted_and_dropped_on_request():
    data = [row("r", [1.0, 1.0]), row("s", [0.0, 2.0])]
    kept = built(data, units="random_pairs")
    assert kept.counts["pairs of equal reward"] == 1 and len(units(kept)) == 2
    dropped = built(data, units="random_pairs", tied_pairs=False)
    assert dropped.counts["dropped: pairs of equal reward"] == 1 and len(units(dropped)) == 1
    assert names(dropped)[units(dropped)[0][0]] == "s/1"


def test_rows_without_references_are_refused_only_where_references_are_needed():
    data = [row("r", [1.0, 0.0], sources=("policy", "policy"))]
    with pytest.raises(ValueError, match="n = 0"):
        built(data)
    table = build_examples(data, TEXT, VIEW._replace(units="best_worst"), transforms.identity, need_references=False)
    assert (
        np.isnan(table.completions_C.quantile).all()
        and units(table) == ((0, 1),)
        and table.completions_C.high.tolist() == [True, False]
    )


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_the_random_selector_draws_one_number_a_unit_in_order(seed):
    """Singles take a draw too, so that the draws of a seed depend on the order of units only."""
    pairs = [(0,), (1, 2), (3, 4), (5,), (6, 7), (8, 9), (10, 11)]
    generator, expected = np.random.default_rng([seed, 1]), []
    for unit in pairs:
        chosen = int(generator.integers(2))
        expected += [1] if len(unit) == 1 else [chosen, 1 - chosen]
    got = unit_weights(np.asarray([len(unit) for unit in pairs]), VIEW._replace(side="random", seed=seed))
    assert got.tolist() == expected and got.dtype == np.float32


def test_ranking_is_compiled_once_for_equal_settings():
    data = rows(5)
    built(data, "log", ties="mid")
    before = ranking._rank_part._cache_size()
    built(data, "log", ties="mid", seed=3)
    assert ranking._rank_part._cache_size() == before
