"""Random batches of tokens for objectives of tokens: rows of two or three completions of uneven length."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from qrpo_jax.data.per_completion import PerCompletion
from qrpo_jax.data.per_token import PerToken
from qrpo_jax.training.objective import LogProbs

B, L, S = 3, 23, 4  # rows, positions, slots, the last of which is empty
OPTIONS: dict[str, dict[str, Any]] = {
    "grpo": {
        "kl_strength": 0.3,
        "clip_low": 0.2,
        "clip_high": 0.28,
        "token_average": "completion",
        "token_limit": 13,
    },
    "rloo": {"clip_low": 0.2, "clip_high": 0.3, "correction_cap": 1.7},
    "reinforce_pp": {"clip_low": 0.1, "clip_high": 0.25},
    "ppo": {"clip_low": 0.2, "clip_high": 0.2, "value_coefficient": 0.7, "value_clip": 0.2},
}
# Every objective with every option that changes its formula.
VARIANTS = [
    ("grpo", {}),
    ("grpo", {"token_average": "token"}),
    ("grpo", {"token_average": "constant"}),
    ("grpo", {"kl_strength": 0.0}),
    ("rloo", {}),
    ("rloo", {"correction_cap": 0.0}),
    ("reinforce_pp", {}),
    ("ppo", {}),
    ("ppo", {"value_clip": 0.0}),
]


class TokenCase(NamedTuple):
    """float64 arrays, see `LogProbs`, `PerCompletion` and `PerToken`."""

    token: np.ndarray
    segment: np.ndarray
    value: np.ndarray
    length: np.ndarray
    weight: np.ndarray
    t: PerToken

    def arguments(self, token: Any = None, value: Any = None) -> tuple[LogProbs, PerCompletion, PerToken]:
        """What an objective is called with; log-probs and values of tokens may be others."""
        token = jnp.asarray(self.token if token is None else token)
        value = jnp.asarray(self.value if value is None else value)
        completion = jnp.zeros((B, S), token.dtype)  # objectives of tokens sum for themselves
        c = PerCompletion(**{name: jnp.zeros((B, S)) for name in PerCompletion._fields})
        c = c._replace(length=jnp.asarray(self.length), weight=jnp.asarray(self.weight))
        log_probs = LogProbs(completion, token, jnp.asarray(self.segment), value)
        return log_probs, c, PerToken(*(jnp.asarray(x) for x in self.t))


def token_case(seed: int, spread: float = 0.3, *, one_advantage: bool = False) -> TokenCase:
    """A case whose ratios lie on all sides of the clips.

    Args:
      spread: std of log π_θ − log π_old; 0 makes every ratio 1.
      one_advantage: all tokens of a completion have the same one, as RLOO and GRPO do.
    """
    rng = np.random.default_rng(seed)
    segment = np.zeros((B, L), int)
    length = np.zeros((B, S), int)
    for b in range(B):
        column = 0
        for s in range(S - 1):
            column += rng.integers(0, 3)  # a prompt
            length[b, s] = min(rng.integers(1, 8), L - column)
            segment[b, column : column + length[b, s]] = s + 1
            column += length[b, s]
    here = segment > 0

    def tokens(values: np.ndarray) -> np.ndarray:
        return np.where(here, values, 0.0)

    old = -rng.exponential(1.5, (B, L))
    advantage = rng.normal(size=(B, L))
    if one_advantage:
        each = rng.normal(size=(B, S))
        advantage = np.take_along_axis(each, np.maximum(segment - 1, 0), 1)
    value = rng.normal(size=(B, L))
    weight = rng.uniform(0.5, 2, (B, S)) * (length > 0)
    t = PerToken(
        old_log_prob=tokens(old),
        reference_log_prob=tokens(old + 0.5 * rng.normal(size=(B, L))),
        correction=tokens(np.minimum(np.exp(0.3 * rng.normal(size=(B, L))), 1.5)),
        advantage=tokens(advantage),
        value=tokens(value + 0.3 * rng.normal(size=(B, L))),
        target_value=tokens(rng.normal(size=(B, L))),
    )
    token = tokens(old + spread * rng.normal(size=(B, L)))
    return TokenCase(token, segment, tokens(value), length, weight, t)


def by_hand(case: TokenCase, name: str, options: dict[str, Any], token: Any = None, value: Any = None, exp: Any = None):
    """Σ loss · weight and Σ weight, one completion and one token after the other, in the formulas of the papers.

    Args:
      token, value: of the policy, indexed [b, l]; torch tensors need torch's `exp`.
    """
    token = case.token if token is None else token
    value = case.value if value is None else value
    exp = np.exp if exp is None else exp
    low, high = options["clip_low"], options["clip_high"]

    def surrogate(ratio, advantage):
        inner = min(max(ratio, 1 - low), 1 + high)
        return -min(ratio * advantage, inner * advantage)

    numerator, denominator = 0.0, 0.0
    for b in range(B):
        for s in range(S):
            places = [l for l in range(L) if case.segment[b, l] == s + 1]
            if not places:
                continue
            terms = []
            for l in places:
                old, reference, correction, advantage, old_value, target = (float(x[b, l]) for x in case.t)
                term = correction * surrogate(exp(token[b, l] - old), advantage)
                if name == "grpo":
                    inverse = exp(reference - token[b, l])
                    term = term + options["kl_strength"] * (inverse - (reference - token[b, l]) - 1)
                if name == "ppo":
                    errors = [(value[b, l] - target) ** 2]
                    if options["value_clip"]:
                        reach = options["value_clip"]
                        near = min(max(value[b, l], old_value - reach), old_value + reach)
                        errors.append((near - target) ** 2)
                    term = term + options["value_coefficient"] * max(errors) / 2
                terms.append(term)
            weight = float(case.weight[b, s])
            if name == "rloo":
                ratio = exp(sum(token[b, l] - float(case.t.old_log_prob[b, l]) for l in places))
                product = float(np.prod([case.t.correction[b, l] for l in places]))
                product = min(product, options["correction_cap"] or np.inf)
                loss = product * surrogate(ratio, float(np.mean([case.t.advantage[b, l] for l in places])))
            elif options.get("token_average") == "constant":
                loss = sum(terms) / options["token_limit"]
            else:
                loss = sum(terms) / len(terms)
            if name in ("reinforce_pp", "ppo") or options.get("token_average") == "token":
                weight *= len(places)
            numerator = numerator + weight * loss
            denominator += weight
    return numerator, denominator
