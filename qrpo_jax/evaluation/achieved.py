"""What a run asked for and what it achieved: KL and quantile of its optimum beside those of its policy."""

import math
from collections.abc import Mapping
from typing import Any

CLOSE = 0.1  # of what was asked for; a policy within it has reached the optimum


def achieved(optimum: Mapping[str, Any], policy: Mapping[str, Any]) -> dict[str, Any]:
    """Asked-for and achieved KL and quantile, and a verdict of one line.

    Args:
      optimum: the forecast of stage `train`.
      policy: figures of the policy, see `compare`.

    Returns:
      asked and reached, each with kl (nats a completion) and quantile; shares of what was asked for that was reached,
      kl_share and quantile_share (of the rise from 1/2); verdict. Empty for an objective without a known optimum. The
      KL is None where it was not estimated.
    """
    if optimum.get("kl") is None:
        return {}
    asked = {"kl": optimum["kl"], "quantile": optimum["expected_quantile"]}
    reached = {"kl": policy.get("kl_to_reference_k1"), "quantile": policy["mean_quantile"]}
    rise = asked["quantile"] - 0.5
    shares = {
        "kl_share": None if reached["kl"] is None or not asked["kl"] else reached["kl"] / asked["kl"],
        "quantile_share": (reached["quantile"] - 0.5) / rise if rise else None,
    }
    return {"asked": asked, "reached": reached} | shares | {"verdict": verdict(asked, reached, shares)}


def verdict(asked: Mapping[str, Any], reached: Mapping[str, Any], shares: Mapping[str, Any]) -> str:
    """One line: how near the policy came, and at which KL."""
    numbers = (
        f"asked for quantile {asked['quantile']:.3f} at KL {asked['kl']:.3g} nats, reached {reached['quantile']:.3f}"
    )
    if reached["kl"] is not None:
        numbers += f" at KL {reached['kl']:.3g}"
    quantile, kl = shares["quantile_share"], shares["kl_share"]
    if quantile is None:
        return f"{numbers}: these settings ask for no change"
    rise = f"{quantile:.0%} of the rise from 0.5"
    if kl is None or not math.isfinite(kl):
        return f"{numbers}: {rise}"
    if quantile >= 1 - CLOSE:
        word = "reached the optimum" if kl <= 1 + CLOSE else "reached the quantile, and went further than it needs"
    elif kl < 1 - CLOSE:
        word = "short of the optimum: it moved less than was asked for; train longer or with a higher learning rate"
    else:
        word = "off the optimum: it moved as far as was asked for, or farther, and gained less"
    return f"{numbers}: {rise} with {kl:.0%} of the KL; {word}"
