"""What a QRPO setting asks for on the data at hand: printed before training, kept for the report."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qrpo_jax import optimum, partition, transforms
from qrpo_jax.data.examples import Examples
from qrpo_jax.transforms import Transform

MOST_BETAS = 256  # different β looked at where each completion has its own
FAR_ABOVE = 2.0  # times what n references can tell apart, from which Best-of-N is called out of reach
ROUNDING = 1e-6  # in units of f; a gap below it is none
GRID = 10_000  # quantiles at which an f that may fall is looked at
LARGE_GAP = 0.5  # of the spread of f over the data, from which the finite-n gap is called large


def figures(
    examples: Examples, transform: Transform, beta_C: np.ndarray, *, partition_name: str, estimator: str
) -> dict[str, Any]:
    """Figures of the optimum and of the references, averaged over the completions that are trained on.

    Args:
      examples: ranked, with at least one completion.
      transform: f and log Z; of a scaled one the unit form, which is that of the average prompt.
      beta_C: β of each completion.
      partition_name: as configured.
      estimator: of quantiles.

    Returns:
      beta (least, median, most), kl, expected_quantile, effective_best_of_n, losing_share (None where Z is infinite),
      tied (share of comparisons), comparisons, references (least, mean, most), gap (log Z_n - log Z), gap_in_f (β
      times it), spread (std of f over the data), partition, estimator.
    """
    c = examples.completions_C
    count_C = c.references
    f_C = np.asarray(transforms.scale_by(transform, c.reward_scale).apply(c.quantile), float)
    tied, compared = ties(examples)
    made: dict[str, Any] = {
        "beta": [float(x) for x in (beta_C.min(), np.median(beta_C), beta_C.max())],
        "tied": tied,
        "comparisons": compared,
        "references": [int(count_C.min()), float(count_C.mean()), int(count_C.max())],
        "spread": float(f_C[np.isfinite(f_C)].std()) if np.isfinite(f_C).any() else math.nan,
        "partition": partition_name,
        "estimator": estimator,
    }
    names = ("kl", "expected_quantile", "effective_best_of_n", "losing_share", "gap", "gap_in_f")
    if not beta_C.min() > transform.smallest_beta:
        return made | dict.fromkeys(names)
    counts, occurrences = np.unique(count_C, return_counts=True)
    # Quantiles of β stand for all of them where lengths make them differ.
    betas = np.unique(beta_C)
    if len(betas) > MOST_BETAS:
        betas = np.quantile(beta_C, (np.arange(MOST_BETAS) + 0.5) / MOST_BETAS)
        shares_PxN = np.outer(np.ones(MOST_BETAS) / MOST_BETAS, occurrences / occurrences.sum())
    else:
        # Long completions may have other numbers of references than short ones.
        shares_PxN = np.asarray([[(count_C[beta_C == b] == n).sum() for n in counts] for b in betas]) / len(beta_C)
    weights = shares_PxN.sum(1)
    with jax.enable_x64(True):
        b = jnp.asarray(betas, jnp.float64)

        def mean(values: Any) -> float:
            return float(np.sum(weights * np.asarray(values)))

        quantile = jax.jit(jax.vmap(lambda beta: optimum.expected_quantile(beta, transform)))(b)
        gaps = jax.jit(jax.vmap(lambda beta: partition.gap(transform, beta, counts, estimator)))(b)
        gaps = np.sum(np.asarray(gaps) * shares_PxN, axis=1) / weights
        made |= {
            "kl": mean(optimum.kl(b, transform)),
            "expected_quantile": mean(quantile),
            "effective_best_of_n": float(optimum.effective_n(mean(quantile))),
            "losing_share": mean(_losing_share(b, transform)),
            "gap": mean(gaps),
            "gap_in_f": mean(betas * gaps),
        }
    return made


def _losing_share(beta_P: jax.Array, transform: Transform) -> jax.Array:
    """Share of reference completions that lose probability, [P], also where f falls somewhere."""
    t = (jnp.arange(GRID) + 0.5) / GRID
    f = transform.apply(t)
    if (jnp.diff(f) >= 0).all():
        return optimum.crossing_share(beta_P, transform)
    return jax.vmap(lambda level: jnp.mean(f <= level))(optimum.crossing_level(beta_P, transform))


def ties(examples: Examples) -> tuple[float, int]:
    """Share of the comparisons of a completion with its references that are ties, and how many there are."""
    ties_C, references_C = examples.completions_C.ties, examples.completions_C.references
    compared = int(references_C.sum())
    return float(np.nansum(ties_C.astype(float) * references_C) / max(compared, 1)), compared


def baseline_lines(examples: Examples, objective: str) -> list[str]:
    """What can be said in advance of an objective without quantiles."""
    tied, compared = ties(examples)
    pairs = examples.counts["pairs of equal reward"]
    return [
        f"{objective} knows no quantiles: the KL and the quantile of its optimum depend on the rewards",
        f"{tied:.1%} of {compared:,} comparisons with references are ties; {pairs} pairs have equal rewards",
        "it needs no log Z, so that the number of references makes no difference to it",
    ]


def lines(made: dict[str, Any], transform: Transform, how_ranked: str) -> list[str]:
    """Three lines on what is asked for, ties and the finite-n gap; a plain warning after them for what is wrong."""
    least, median, most = made["beta"]
    beta = f"beta {median:g}" if least == most else f"beta {least:.3g} to {most:.3g} (median {median:.3g})"
    few, average, many = made["references"]
    n = f"{few}" if few == many else f"{few} to {many} (mean {average:.3g})"
    average_prompt = ", for a prompt of average spread" if transform.scaled else ""
    told = []
    if made["kl"] is None:
        told.append(
            f"{transform.name} at {beta} has no optimum in exact quantiles (beta must be above "
            f"{transform.smallest_beta:g}); the ranks of {n} references bound it"
        )
    else:
        told.append(
            f"asks for KL {made['kl']:.3g} nats and mean quantile {made['expected_quantile']:.4g}, as Best-of-"
            f"{made['effective_best_of_n']:.3g} has it; {made['losing_share']:.0%} of reference completions are to "
            f"lose probability ({transform.name}, {beta}{average_prompt})"
        )
    told.append(
        f"{made['tied']:.1%} of {made['comparisons']:,} comparisons with references are ties, ranked {how_ranked!r}"
    )
    if made["gap"] is None:
        told.append(f"log Z is that of {n} references ({made['partition']})")
    else:
        used = "is used" if made["partition"] == "population" else f"is not used ({made['partition']} is)"
        told.append(
            f"with n = {n} references log Z differs by {made['gap']:+.3g} from the exact one, {made['gap_in_f']:+.3g} "
            f"in units of f ({made['estimator']}); the exact one {used}"
        )
    return told + warnings(made, transform)


def warnings(made: dict[str, Any], transform: Transform) -> list[str]:
    """What cannot be reached, or is far off, in plain words; none if nothing is."""
    found = []
    reach = made["references"][1] + 1
    wanted = made["effective_best_of_n"]
    if wanted is not None and wanted > FAR_ABOVE * reach:
        # The best of n + 1 is the best that ranks among n references can single out.
        try:
            beta = optimum.beta_for(optimum.best_of_n, reach, transform)
            remedy = f", or raise beta to about {beta:.2g}"
        except ValueError:
            remedy = ""
        found.append(
            f"WARNING: {made['references'][1]:.3g} references cannot single out better than the best of {reach:.3g}, "
            f"and Best-of-{wanted:.3g} is asked for: sample more references{remedy}"
        )
    gap = made["gap_in_f"]
    if made["partition"] == "population" and gap is not None and abs(gap) > max(LARGE_GAP * made["spread"], ROUNDING):
        found.append(
            f"WARNING: the exact log Z shifts every target by {-gap:+.3g} from what these references can give, where "
            f"f itself spreads by {made['spread']:.3g}: set train.partition='finite_sample', or "
            "select.estimator='midpoint'"
        )
    if made["tied"] > 0.5:
        found.append("WARNING: more comparisons tie than not: few completions differ in what they are trained towards")
    return found
