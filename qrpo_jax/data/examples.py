"""Examples: the view of rows that a run trains on. Selection and quantiles happen here, on loading.

Rows keep every completion; which of them are trained on, in pairs or alone, and against which references they
are ranked, are settings of a view. No copy of a data set is made for another setting.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qrpo_jax import losses, partition, quantiles, transforms
from qrpo_jax.data.rows import Row, check_row, check_scored
from qrpo_jax.data.text import Text
from qrpo_jax.transforms import Transform

VIEWS = ("singles", "best_worst", "random_pairs")
SELECTORS = tuple(losses.SELECTORS)


class View(NamedTuple):
    """Which completions to train on and how to rank them.

    units: "singles" (every completion alone), "best_worst" (one pair: highest and lowest reward) or
      "random_pairs" (disjoint random pairs).
    first: only the first so many completions of a row; 0 for all.
    references: rank against the first so many reference completions; 0 for all.
    exclude_own: leave a completion's own reward out of the references it is ranked against.
    partition: which log Z the target has: "population", "finite_sample" or "empirical", see `partition`.
    selector: which completion of a pair carries a pointwise loss; singles ignore it.
    tied_pairs: keep pairs of equal reward, which say nothing to an objective that only knows better and worse.
    max_tokens: longest prompt and completion together.
    over_long: what is longer is "drop"ped, with its pair, or its prompt is cut: "truncate_prompt_left".
    """

    units: str = "singles"
    first: int = 0
    references: int = 0
    exclude_own: bool = True
    estimator: str = "ecdf"
    ties: str = "upper"
    partition: str = "population"
    selector: str = "both"
    tied_pairs: bool = True
    max_tokens: int = 2048
    over_long: str = "drop"
    seed: int = 0


class Examples(NamedTuple):
    """C completions as flat arrays, and U units of one or two of them.

    Host memory is 4 bytes a token. Reference log-probs are NaN where rows lack them.
    """

    tokens: np.ndarray  # int32, all completions one after the other, each with its prompt before it
    starts_C: np.ndarray  # int64, where a completion's prompt begins in `tokens`
    prompt_lengths_C: np.ndarray  # int32
    lengths_C: np.ndarray  # int32, completion tokens
    reward_C: np.ndarray
    quantile_C: np.ndarray
    ties_C: np.ndarray
    references_C: np.ndarray  # int32, how many references it is ranked against
    log_z_C: np.ndarray  # of its β, by the view's partition; NaN without β
    reward_scale_C: np.ndarray
    reference_log_prob_C: np.ndarray
    weight_C: np.ndarray
    high_C: np.ndarray
    names: tuple[str, ...]  # "ROW ID/completion INDEX"
    units: tuple[tuple[int, ...], ...]
    counts: dict[str, int]  # what was kept, cut and dropped, by reason

    def unit_lengths(self) -> np.ndarray:
        total_C = self.prompt_lengths_C + self.lengths_C
        return np.asarray([sum(int(total_C[c]) for c in unit) for unit in self.units])

    def unit_sizes(self) -> np.ndarray:
        return np.asarray([len(unit) for unit in self.units])


def build_examples(
    rows: Iterable[Row],
    text: Text,
    view: View,
    transform: Transform | None,
    *,
    beta: Callable[[np.ndarray], Any] | None = None,
    need_references: bool = True,
) -> Examples:
    """Reads rows once and lays out what the view selects.

    Args:
      transform: decides clamps and the smallest number of references; None where nothing is ranked
        (SFT, reference log-probs), in which case rewards may be absent.
      beta: β of completions of these lengths, [C] -> [C] or []; None where no log Z is wanted.
      need_references: refuse rows with too few references to rank against; otherwise their quantiles are NaN.

    Raises:
      ValueError: an empty prompt, a row without a completion, a NaN reward, too few references, or a β for which Z
        is infinite.
    """
    table = _Table(text, view)
    for index, row in enumerate(rows):
        check_row(row)
        if transform is not None:
            check_scored(row)
        table.add(index, row, ranked=transform is not None)
    return table.finish(transform, beta, need_references)


def pick_units(row: Row, view: View, index: int) -> list[tuple[int, ...]]:
    """Indices of a row's completions that are trained on together; pairs have the higher reward first."""
    count = len(row.completions) if view.first == 0 else min(view.first, len(row.completions))
    if view.units == "singles":
        return [(i,) for i in range(count)]
    reward = [row.completions[i].reward for i in range(count)]
    if view.units == "best_worst":
        best = max(range(count), key=lambda i: (reward[i], -i))
        worst = min(range(count), key=lambda i: (reward[i], -i))
        return [(best, worst)] if best != worst else []
    order = np.random.default_rng([view.seed, index]).permutation(count).tolist()
    drawn = list(zip(order[0::2], order[1::2], strict=False))
    return [(i, j) if reward[i] >= reward[j] else (j, i) for i, j in drawn]


class Ranking(NamedTuple):
    """What references tell about C completions; columns of `Examples`."""

    quantile_C: np.ndarray
    ties_C: np.ndarray
    references_C: np.ndarray
    log_z_C: np.ndarray
    reward_scale_C: np.ndarray


class _Table:
    """Grows column by column while rows stream by."""

    def __init__(self, text: Text, view: View) -> None:
        self.text, self.view = text, view
        self.tokens: list[np.ndarray] = []
        self.columns: dict[str, list] = {
            name: [] for name in ("prompt", "length", "reward", "reference_log_prob", "weight", "chosen", "own")
        }
        self.references: list[np.ndarray] = []  # one array a row
        self.row_C: list[int] = []
        self.names: list[str] = []
        self.units: list[tuple[int, ...]] = []
        self.counts = dict.fromkeys(
            (
                "rows",
                "completions",
                "dropped: too long",
                "prompts cut",
                "rows without a pair",
                "pairs of equal reward",
                "dropped: pairs of equal reward",
                "cut by length limit",
                "dropped: no tokens",
                "special strings taken as text",
            ),
            0,
        )
        self.coin = np.random.default_rng([view.seed, 1])

    def add(self, index: int, row: Row, ranked: bool) -> None:
        view = self.view
        self.counts["rows"] += 1
        own = [c.reward for c in row.completions if c.source == "reference"]
        references = np.asarray([*own, *row.reference_rewards], np.float32)
        self.references.append(references[: view.references] if view.references else references)
        prompt = self.text.prompt(row.messages, f"row {row.id!r}")
        self.counts["special strings taken as text"] += sum(
            self.text.special_strings(m.content, m.role) for m in row.messages
        )
        picked = pick_units(row, view, index)
        self.counts["rows without a pair"] += not picked
        ordinal = np.cumsum([c.source == "reference" for c in row.completions])
        for unit in picked:
            if len(unit) == 2 and row.completions[unit[0]].reward == row.completions[unit[1]].reward:
                self.counts["pairs of equal reward"] += 1
                if not view.tied_pairs:
                    self.counts["dropped: pairs of equal reward"] += 1
                    continue
            bodies = [self._body(row, i) for i in unit]
            if not all(map(len, bodies)):  # a chat template may strip all of a completion that did not end
                self.counts["dropped: no tokens"] += len(unit)
                continue
            # A pair keeps one prompt: log Z would not cancel between two that were cut differently.
            excess = max(0, len(prompt) + max(len(body) for body in bodies) - view.max_tokens)
            if excess and (view.over_long == "drop" or excess >= len(prompt)):
                self.counts["dropped: too long"] += len(unit)
                continue
            self.counts["prompts cut"] += len(unit) * (excess > 0)
            kept = self._cut(prompt, excess)
            # A random selector tosses one coin a pair; the others leave the coins as they are.
            coin = float(self.coin.integers(2))
            chosen = losses.SELECTORS[view.selector]
            chosen = coin if chosen is None else chosen
            weights = (chosen, 1 - chosen) if len(unit) == 2 else (1.0,)
            members = []
            for side, (i, body) in enumerate(zip(unit, bodies, strict=True)):
                completion = row.completions[i]
                members.append(len(self.names))
                self.names.append(f"{row.id}/{i}")
                self.row_C.append(len(self.references) - 1)
                self.tokens.append(np.concatenate([kept, body]))
                in_own_set = completion.source == "reference" and (
                    view.references == 0 or ordinal[i] <= view.references
                )
                values = {
                    "prompt": len(kept),
                    "length": len(body),
                    "reward": completion.reward,
                    "reference_log_prob": completion.reference_log_prob,
                    "weight": weights[side],
                    "chosen": side == 0,
                    "own": in_own_set,
                }
                for name, value in values.items():
                    self.columns[name].append(value)
                self.counts["completions"] += 1
                self.counts["cut by length limit"] += not completion.finished
            self.units.append(tuple(members))

    def _cut(self, prompt: np.ndarray, excess: int) -> np.ndarray:
        """The prompt without its oldest tokens; the token that begins every sequence stays."""
        first = int(excess > 0 and prompt[0] == self.text.tokenizer.bos_token_id)
        return np.concatenate([prompt[:first], prompt[first + excess :]])

    def _body(self, row: Row, index: int) -> np.ndarray:
        completion = row.completions[index]
        if len(completion.tokens):
            return completion.tokens
        self.counts["special strings taken as text"] += self.text.special_strings(completion.text, "assistant")
        return self.text.completion(completion.text, completion.finished)

    def finish(
        self, transform: Transform | None, beta: Callable[[np.ndarray], Any] | None, need_references: bool
    ) -> Examples:
        sizes = [len(tokens) for tokens in self.tokens]
        column = {name: np.asarray(values) for name, values in self.columns.items()}
        reward_C = column["reward"].astype(np.float32)
        if transform is None:
            unknown = np.full(len(sizes), np.nan, np.float32)
            ranking = Ranking(unknown, unknown, np.zeros(len(sizes), np.int32), unknown, unknown)
            high_C = np.zeros(len(sizes), bool)
        else:
            beta_C = None if beta is None else np.broadcast_to(beta(column["length"]), len(sizes))
            ranking = self._rank(transform, beta_C, reward_C, column["own"].astype(bool), need_references)
            paired = np.zeros(len(sizes), bool)
            paired[[c for unit in self.units if len(unit) == 2 for c in unit]] = True
            high_C = np.where(paired, column["chosen"].astype(bool), ranking.quantile_C > 0.5)
        return Examples(
            tokens=np.concatenate(self.tokens) if self.tokens else np.zeros(0, np.int32),
            starts_C=np.cumsum([0, *sizes[:-1]], dtype=np.int64) if sizes else np.zeros(0, np.int64),
            prompt_lengths_C=column["prompt"].astype(np.int32),
            lengths_C=column["length"].astype(np.int32),
            reward_C=reward_C,
            **ranking._asdict(),
            reference_log_prob_C=column["reference_log_prob"].astype(np.float32),
            weight_C=column["weight"].astype(np.float32),
            high_C=high_C,
            names=tuple(self.names),
            units=tuple(self.units),
            counts=self.counts,
        )

    def _rank(
        self,
        transform: Transform,
        beta_C: np.ndarray | None,
        reward_C: np.ndarray,
        own_C: np.ndarray,
        need_references: bool,
    ) -> Ranking:
        view = self.view
        most = max((len(r) for r in self.references), default=0)
        references_RxN = np.zeros((len(self.references), max(most, 1)), np.float32)
        mask_RxN = np.zeros(references_RxN.shape, bool)
        for i, references in enumerate(self.references):
            references_RxN[i, : len(references)] = references
            mask_RxN[i, : len(references)] = True
        counts_R = mask_RxN.sum(1)
        row_C = np.asarray(self.row_C, np.int64)
        exclude_C = own_C & view.exclude_own
        count_C = counts_R[row_C] - exclude_C
        if len(row_C) and need_references:
            quantiles.check_references(count_C, transform, view.estimator)
        scale_C = _reward_scale(references_RxN, mask_RxN, transform)[row_C].astype(np.float32)
        log_z_C = np.full(len(row_C), np.nan, np.float32)
        if beta_C is not None and view.partition == "population":
            log_z_C = _population_log_z(transform, beta_C, scale_C)
        # Of finite samples log Z is the references' as well.
        sampled = beta_C is not None and view.partition != "population"

        @jax.jit
        def rank(reward, references_N, mask_N, exclude, key, beta, scale):
            own_N = jnp.where(exclude, quantiles.exclude_own(reward, references_N, mask_N), mask_N)
            how = {"estimator": view.estimator, "ties": view.ties}
            quantile = quantiles.estimate(reward, references_N, own_N, **how, clamped=transform.clamp, key=key)
            log_z = jnp.float32(jnp.nan)
            if sampled:
                scaled = transforms.scale_by(transform, scale)
                log_z = partition.log_z(view.partition, scaled, beta, reward, references_N, own_N, **how)
            return quantile, quantiles.tied_share(reward, references_N, own_N), log_z

        keys_C = jax.random.split(jax.random.key(view.seed), len(row_C))
        betas_C = np.ones(len(row_C), np.float32) if beta_C is None else beta_C.astype(np.float32)
        parts = []
        # Empirical log Z compares all references with each other.
        size = max(256, (1 << 24) // (most + 1) ** 2) if sampled else 1 << 16
        for part in _slices(len(row_C), min(size, 1 << 16)):
            rows = row_C[part]
            ranked = jax.vmap(rank)(
                reward_C[part],
                references_RxN[rows],
                mask_RxN[rows],
                exclude_C[part],
                keys_C[part],
                betas_C[part],
                scale_C[part],
            )
            parts.append([np.asarray(x) for x in ranked])
        columns = (np.concatenate(x) for x in zip(*parts, strict=True)) if parts else ([], [], [])
        quantile_C, ties_C, sampled_log_z_C = (np.asarray(x, np.float32) for x in columns)
        log_z_C = sampled_log_z_C if sampled else log_z_C
        return Ranking(quantile_C, ties_C, count_C.astype(np.int32), log_z_C, scale_C)


def _reward_scale(references_RxN: np.ndarray, mask_RxN: np.ndarray, transform: Transform) -> np.ndarray:
    """Each row's std of reference rewards over its mean across rows, [R]."""
    counts_R = mask_RxN.sum(1)
    std_R = np.asarray(jax.vmap(quantiles.reward_std)(references_RxN, mask_RxN)) if len(counts_R) else np.zeros(0)
    # With one reference there is no spread to speak of; only scaled transforms use it, and refuse n = 1.
    std_R = np.where(counts_R > 1, std_R, np.nan)
    mean_std = np.nanmean(std_R) if np.isfinite(std_R).any() else np.nan
    if transform.scaled and not mean_std > 0:
        raise ValueError(f"every prompt's reference rewards are equal; transform {transform.name!r} has no scale")
    return std_R / mean_std if mean_std > 0 else np.ones_like(std_R)


def _population_log_z(transform: Transform, beta_C: np.ndarray, scale_C: np.ndarray) -> np.ndarray:
    """log Z of each completion's β, [C]; few of them differ."""
    pairs = np.stack([beta_C, scale_C if transform.scaled else np.ones_like(scale_C)], 1)
    different, which_C = np.unique(pairs, axis=0, return_inverse=True)
    scaled = transforms.scale_by(transform, different[:, 1])
    return np.asarray(scaled.log_z(different[:, 0].astype(np.float32)), np.float32)[which_C.reshape(-1)]


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, count)) for i in range(0, count, size))
