"""Held-out figures of one side, alone and against the other side, each with its interval over prompts.

A table of figures maps a name to (figure, interval).
"""

from collections.abc import Sequence

import numpy as np

from qrpo_jax.evaluation import kl, length_control, passes
from qrpo_jax.evaluation.answers import Answers
from qrpo_jax.evaluation.intervals import bootstrap, mean_with_interval, ratio_with_interval
from qrpo_jax.evaluation.ranks import mid_rank_quantile
from qrpo_jax.evaluation.wins import outcomes

Figures = dict[str, tuple[float, list[float]]]


def prompt_means(answers: Sequence[Answers]) -> np.ndarray:
    """Mean reward of each prompt, [P]."""
    return np.asarray([a.reward_S.mean() for a in answers])


def own_figures(answers: Sequence[Answers]) -> Figures:
    """Figures of a side alone.

    Rewards, passes and quantiles are averaged by prompt, the others by completion.

    Args:
      answers: one for each prompt, at least one.

    Returns:
      mean_reward, mean_tokens, share_finished, share_unfinished, share_full_reward; where completions are graded by
      tests, pass_rate and pass_at_K for powers of two; and, where prompts have rewards of stored references,
      stored_quantile, over these prompts.
    """
    count_P = np.asarray([len(a.reward_S) for a in answers], float)

    def by_completion(values: Sequence[np.ndarray]) -> tuple[float, list[float]]:
        return ratio_with_interval(np.asarray([v.sum(dtype=float) for v in values]), count_P)

    figures = {
        "mean_reward": mean_with_interval(prompt_means(answers)),
        "mean_tokens": by_completion([a.length_S for a in answers]),
        "share_finished": by_completion([a.finished_S for a in answers]),
        "share_unfinished": by_completion([~a.finished_S for a in answers]),
        "share_full_reward": by_completion([passes.passed(a.reward_S) for a in answers]),
    }
    if all(len(a.graded_S) for a in answers):
        figures |= pass_figures(answers)
    if any(len(a.stored_N) for a in answers):
        figures["stored_quantile"] = mean_with_interval(np.asarray([stored_quantile(a) for a in answers]))
    return figures


def pass_figures(answers: Sequence[Answers]) -> Figures:
    """pass_rate, and pass_at_K for the k that all prompts have samples for."""
    passed = [(int(passes.passed(a.graded_S).sum()), len(a.graded_S)) for a in answers]
    figures = {"pass_rate": mean_with_interval(np.asarray([c / n for c, n in passed]))}
    for k in passes.ks(min(n for _, n in passed)):
        figures[f"pass_at_{k}"] = mean_with_interval(np.asarray([passes.pass_at_k(c, n, k) for c, n in passed]))
    return figures


def stored_quantile(answers: Answers) -> float:
    """Mean quantile of a prompt's completions among its stored references; NaN without these."""
    if not len(answers.stored_N):
        return float("nan")
    return float(mid_rank_quantile(answers.reward_S, answers.stored_N).mean())


def kl_figures(answers: Sequence[Answers], other: str) -> Figures:
    """Estimates of the KL to the other side, in nats; none where no log-ratio is known.

    Args:
      other: name of the other side.

    Returns:
      kl_to_OTHER_k1 and _k3, a completion, and kl_to_OTHER_k1_per_token and _k3_per_token, a token; k3 of a token is
      that of the log-ratio of this token.
    """
    known = [np.isfinite(a.log_ratio_S) for a in answers]
    count_P = np.asarray([k.sum() for k in known], float)
    if not count_P.sum():
        return {}
    pairs = [(a, k) for a, k in zip(answers, known, strict=True)]
    tokens_P = np.asarray([a.length_S[k].sum() if len(k) else 0 for a, k in pairs], float)
    k1_P = np.asarray([kl.k1(a.log_ratio_S[k]).sum() for a, k in pairs])
    k3_P = np.asarray([kl.k3(a.log_ratio_S[k]).sum() for a, k in pairs])
    token_k3_P = np.asarray([a.token_k3_S[k].sum() for a, k in pairs])
    return {
        f"kl_to_{other}_k1": ratio_with_interval(k1_P, count_P),
        f"kl_to_{other}_k3": ratio_with_interval(k3_P, count_P),
        f"kl_to_{other}_k1_per_token": ratio_with_interval(k1_P, tokens_P),
        f"kl_to_{other}_k3_per_token": ratio_with_interval(token_k3_P, tokens_P),
    }


def figures_against(answers: Sequence[Answers], references: Sequence[Answers]) -> Figures:
    """Figures of a side against the references of the same prompts, which are in the same order.

    Returns:
      mean_quantile, the mean mid-rank quantile among the references of the prompt; win_rate, the same number as the
      share of pairs won, ties half, with share_won and share_tied; length_controlled_reward, with a slope for each
      prompt from its references, and length_controlled_reward_own_slope, with one slope from these completions.
    """
    pairs = list(zip(answers, references, strict=True))
    quantiles = [mid_rank_quantile(a.reward_S, r.reward_S).mean() for a, r in pairs]
    found = [outcomes(a.reward_S, r.reward_S) for a, r in pairs]
    of_pairs = [(a.reward_S, a.length_S, r.reward_S, r.length_S) for a, r in pairs]
    controlled = [length_control.controlled(*one).mean() for one in of_pairs]
    sums_KxP = np.asarray([(*length_control.slope_sums(*one), 1.0) for one in of_pairs]).T
    return {
        "mean_quantile": mean_with_interval(np.asarray(quantiles)),
        "win_rate": mean_with_interval(np.asarray([one.rate for one in found])),
        "share_won": mean_with_interval(np.asarray([one.won for one in found])),
        "share_tied": mean_with_interval(np.asarray([one.tied for one in found])),
        "length_controlled_reward": mean_with_interval(np.asarray(controlled)),
        "length_controlled_reward_own_slope": bootstrap(length_control.own_slope_reward, *sums_KxP),
    }
