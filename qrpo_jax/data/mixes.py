"""Synthetic completions of named length mixes, to measure and to plan without data."""

from typing import NamedTuple

import numpy as np

from qrpo_jax.data.corpus import held
from qrpo_jax.data.examples import Examples
from qrpo_jax.data.per_completion import PerCompletion
from qrpo_jax.errors import UserError


class LengthMix(NamedTuple):
    """Lengths of prompts and completions in tokens; each is log-normal around its median, cut to [1, most].

    Attributes:
      prompt, completion: medians.
      spread: standard deviation of the logarithms of lengths.
      siblings: completions of a prompt.
      pairs: units are pairs; otherwise each completion is one.
      most: the longest prompt and completion together.
    """

    prompt: int
    completion: int
    spread: float
    siblings: int
    pairs: bool
    most: int


MIXES = {
    # A verifiable task: as many completions as the paper draws for a prompt, each a short answer.
    "many_short": LengthMix(128, 48, 0.4, 50, False, 512),
    # One pair a prompt of a chat set such as UltraFeedback or Magpie.
    "chat_pairs": LengthMix(200, 350, 0.5, 2, True, 2048),
    # Documents with a question, and short answers.
    "long_prompts": LengthMix(1500, 40, 0.3, 8, False, 4096),
}


def choose_mix(name: str) -> LengthMix:
    """The mix of this name.

    Raises:
      UserError: about "mix": there is none.
    """
    if name not in MIXES:
        raise UserError(f"mix is {name!r}; allowed: {', '.join(MIXES)}", about="mix")
    return MIXES[name]


def synthetic(mix: LengthMix, prompts: int, *, vocab: int, seed: int = 0) -> Examples:
    """Completions of so many prompts with random tokens, rewards, ranks and log π_ref; the same for the same seed.

    Args:
      vocab: tokens are below it.
    """
    rng = np.random.default_rng(seed)
    count = prompts * mix.siblings

    def lengths(median: int, number: int) -> np.ndarray:
        return np.clip(median * np.exp(mix.spread * rng.standard_normal(number)), 1, mix.most - 1).astype(np.int32)

    prompt_R = lengths(mix.prompt, prompts)
    length_C = np.minimum(lengths(mix.completion, count), mix.most - np.repeat(prompt_R, mix.siblings))
    reward = rng.standard_normal(count).astype(np.float32)
    step = 2 if mix.pairs else 1
    if mix.pairs:
        reward = np.sort(reward.reshape(-1, 2))[:, ::-1].reshape(-1)
    quantile = rng.uniform(0, 1, count).astype(np.float32)
    zero, one = np.zeros(count, np.float32), np.ones(count, np.float32)
    tokens = rng.integers(0, vocab, int(prompt_R.sum() + length_C.sum()), dtype=np.int32)
    corpus = held(
        tokens,
        prompt_R,
        length_C,
        np.full(prompts, mix.siblings),
        rewards=reward,
        reference_log_probs=-length_C.astype(np.float32),
    )
    return Examples(
        corpus,
        entries_C=np.arange(count, dtype=np.int32),
        prompts_C=corpus.row_K,
        cuts_C=np.zeros(count, np.int32),
        completions_C=PerCompletion(
            reward=reward,
            quantile=quantile,
            ties=zero,
            references=np.full(count, mix.siblings, np.int32),
            log_z=zero,
            reward_scale=one,
            reference_log_prob=corpus.reference_log_probs_K,
            length=length_C,
            weight=one / step,
            high=np.arange(count) % 2 == 0 if mix.pairs else quantile > 0.5,
        ),
        sizes_U=np.full(count // step, step, np.int8),
        counts={"rows": prompts, "completions": count},
    )
