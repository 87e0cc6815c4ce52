"""The forecast of a QRPO run: the optimum of its settings on its data, printed before training and kept on record."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qrpo_jax import optimum, partition, transforms
from qrpo_jax.data.examples import Examples
from qrpo_jax.errors import UserError
from qrpo_jax.evaluation.ties import Comparisons, tied_share
from qrpo_jax.transforms import Transform

MOST_BETAS = 256  # of more distinct values of β, this many quantiles represent them
GRID = 10_000  # quantiles at which an f that may fall is evaluated
FAR_BEYOND = 2.0  # an optimum like Best-of-N is out of reach if N exceeds this multiple of n + 1
LARGE_GAP = 0.5  # a gap of log Z is large if it exceeds this multiple of the spread of f over the data
ROUNDING = 1e-6  # in units of f; a smaller gap is rounding
MANY_TIES = 0.5  # share of tied comparisons above which there is a warning

OPTIMUM_FIGURES = ("kl", "expected_quantile", "effective_best_of_n", "losing_share", "gap", "gap_in_f")


def figures(
    examples: Examples, transform: Transform, beta_C: np.ndarray, *, partition_name: str, estimator: str
) -> dict[str, Any]:
    """Figures of the optimum and of the references, averaged over the training completions.

    Args:
      examples: ranked, with at least one completion.
      transform: f and log Z; of a scaled transform its unit form, which is that of the average prompt.
      beta_C: [C] β of each completion.
      partition_name: which log Z the targets have, see `partition`.
      estimator: of the quantiles.

    Returns:
      beta (least, median, most), tied (share of comparisons), comparisons, references (least, mean, most), spread
      (standard deviation of f over the data), partition, estimator; and OPTIMUM_FIGURES, which are None where Z is
      infinite: kl, expected_quantile, effective_best_of_n, losing_share (share of reference completions that lose
      probability), gap (log Z_n − log Z), gap_in_f (β times the gap).
    """
    c = examples.completions_C
    count_C = c.references
    f_C = np.asarray(transforms.scale_by(transform, c.reward_scale).apply(c.quantile), float)
    comparisons = reference_comparisons(examples)
    data: dict[str, Any] = {
        "beta": [float(x) for x in (beta_C.min(), np.median(beta_C), beta_C.max())],
        "tied": tied_share(comparisons),
        "comparisons": int(comparisons.compared_C.sum()),
        "references": [int(count_C.min()), float(count_C.mean()), int(count_C.max())],
        "spread": float(f_C[np.isfinite(f_C)].std()) if np.isfinite(f_C).any() else math.nan,
        "partition": partition_name,
        "estimator": estimator,
    }
    if not beta_C.min() > transform.smallest_beta:
        return data | dict.fromkeys(OPTIMUM_FIGURES)
    betas = summarise_betas(beta_C, count_C)
    with jax.enable_x64(True):
        return data | optimum_figures(betas, transform) | gap_figures(betas, transform, estimator)


def reference_comparisons(examples: Examples) -> Comparisons:
    """Comparisons of each completion with the references that it is ranked against."""
    c = examples.completions_C
    return Comparisons(c.ties.astype(float) * c.references, c.references)


class Betas(NamedTuple):
    """The β of the training completions together with their numbers of references.

    Long completions may have another β, and other numbers of references, than short ones.

    Attributes:
      beta_U: [U] values of β.
      references_M: [M] distinct numbers of references.
      share_UxM: [U, M] share of the completions with each β and number of references; sums to 1.
    """

    beta_U: np.ndarray
    references_M: np.ndarray
    share_UxM: np.ndarray

    @property
    def share_U(self) -> np.ndarray:
        return self.share_UxM.sum(1)

    def mean(self, value_U: Any) -> float:
        """Mean over the completions of a figure that depends on β."""
        return float(np.sum(self.share_U * np.asarray(value_U)))


def summarise_betas(beta_C: np.ndarray, count_C: np.ndarray) -> Betas:
    references_M, occurrences_M = np.unique(count_C, return_counts=True)
    beta_U = np.unique(beta_C)
    if len(beta_U) > MOST_BETAS:
        beta_U = np.quantile(beta_C, (np.arange(MOST_BETAS) + 0.5) / MOST_BETAS)
        share_UxM = np.outer(np.ones(MOST_BETAS) / MOST_BETAS, occurrences_M / occurrences_M.sum())
    else:
        share_UxM = np.asarray([[(count_C[beta_C == b] == n).sum() for n in references_M] for b in beta_U])
        share_UxM = share_UxM / len(beta_C)
    return Betas(beta_U, references_M, share_UxM)


def optimum_figures(betas: Betas, transform: Transform) -> dict[str, float]:
    """Figures of the optimal policy; call it with float64 enabled."""
    beta_U = jnp.asarray(betas.beta_U, jnp.float64)
    quantile_U = jax.jit(jax.vmap(lambda beta: optimum.expected_quantile(beta, transform)))(beta_U)
    expected_quantile = betas.mean(quantile_U)
    return {
        "kl": betas.mean(optimum.kl(beta_U, transform)),
        "expected_quantile": expected_quantile,
        "effective_best_of_n": float(optimum.effective_n(expected_quantile)),
        "losing_share": betas.mean(losing_share(beta_U, transform)),
    }


def losing_share(beta_U: jax.Array, transform: Transform) -> jax.Array:
    """Share of reference completions that lose probability, [U], also for an f that is not monotonic."""
    t = (jnp.arange(GRID) + 0.5) / GRID
    f = transform.apply(t)
    if (jnp.diff(f) >= 0).all():
        return optimum.crossing_share(beta_U, transform)
    return jax.vmap(lambda level: jnp.mean(f <= level))(optimum.crossing_level(beta_U, transform))


def gap_figures(betas: Betas, transform: Transform, estimator: str) -> dict[str, float]:
    """How far log Z of finitely many references is from the exact one; call it with float64 enabled."""
    beta_U = jnp.asarray(betas.beta_U, jnp.float64)
    gap_UxM = jax.jit(jax.vmap(lambda beta: partition.gap(transform, beta, betas.references_M, estimator)))(beta_U)
    gap_U = np.sum(np.asarray(gap_UxM) * betas.share_UxM, axis=1) / betas.share_U
    return {"gap": betas.mean(gap_U), "gap_in_f": betas.mean(betas.beta_U * gap_U)}


def baseline_lines(examples: Examples, objective: str) -> list[str]:
    """Three lines for an objective without quantiles: why there is no forecast, ties, and log Z."""
    comparisons = reference_comparisons(examples)
    pairs = examples.counts["pairs of equal reward"]
    return [
        f"optimum: no forecast, because {objective} uses no quantiles: its optimum depends on the rewards",
        f"{tied_share(comparisons):.1%} of {comparisons.compared_C.sum():,} comparisons with references are ties; "
        f"{pairs} pairs have equal rewards",
        f"{objective} needs no log Z, so the number of references does not change its targets",
    ]


def lines(forecast: dict[str, Any], transform: Transform, ties: str) -> list[str]:
    """The forecast for the terminal: a line each on the optimum, ties and log Z, then any warnings.

    Args:
      forecast: from `figures`.
      transform: that of the forecast.
      ties: how ties are ranked, see `quantiles`.
    """
    few, average, many = forecast["references"]
    n = f"{few}" if few == many else f"{few} to {many} (mean {average:.3g})"
    return [
        optimum_line(forecast, transform, n),
        f"{forecast['tied']:.1%} of {forecast['comparisons']:,} comparisons with references are ties, ranked {ties!r}",
        log_z_line(forecast, n),
        *warnings(forecast, transform),
    ]


def optimum_line(forecast: dict[str, Any], transform: Transform, n: str) -> str:
    least, median, most = forecast["beta"]
    beta = f"beta {median:g}" if least == most else f"beta {least:.3g} to {most:.3g} (median {median:.3g})"
    if forecast["kl"] is None:
        return (
            f"optimum: none, because Z is infinite for {transform.name} at {beta} (beta must be above "
            f"{transform.smallest_beta:g}); over the quantiles of {n} references Z is finite"
        )
    prompt = ", prompt of average spread" if transform.scaled else ""
    return (
        f"optimum: KL {forecast['kl']:.3g} nats, mean quantile {forecast['expected_quantile']:.4g} "
        f"(like Best-of-{forecast['effective_best_of_n']:.3g}); {forecast['losing_share']:.0%} of reference "
        f"completions lose probability ({transform.name}, {beta}{prompt})"
    )


def log_z_line(forecast: dict[str, Any], n: str) -> str:
    name = forecast["partition"]
    if forecast["gap"] is None:
        return f"log Z is computed from {n} references ({name})"
    used = "the exact log Z" if name == "population" else f"the {name} log Z"
    return (
        f"log Z of {n} references differs from the exact one by {forecast['gap']:+.3g} ({forecast['gap_in_f']:+.3g} "
        f"in units of f, estimator {forecast['estimator']!r}); training uses {used}"
    )


def warnings(forecast: dict[str, Any], transform: Transform) -> list[str]:
    """Warnings of an optimum out of reach, a large gap of log Z, and many ties."""
    messages = []
    mean_references = forecast["references"][1]
    reach = mean_references + 1  # the best rank among n references is that of the best of n + 1
    best_of_n = forecast["effective_best_of_n"]
    if best_of_n is not None and best_of_n > FAR_BEYOND * reach:
        try:
            beta = optimum.beta_for(optimum.best_of_n, reach, transform)
            remedy = f", or raise beta to about {beta:.2g}"
        except UserError:
            remedy = ""
        messages.append(
            f"WARNING: the optimum is like Best-of-{best_of_n:.3g}, but ranks among {mean_references:.3g} references "
            f"resolve no more than the best of {reach:.3g}: sample more references{remedy}"
        )
    gap, spread = forecast["gap_in_f"], forecast["spread"]
    if forecast["partition"] == "population" and gap is not None and abs(gap) > max(LARGE_GAP * spread, ROUNDING):
        messages.append(
            f"WARNING: the exact log Z shifts every target by {-gap:+.3g} from the log Z of these references, while "
            f"f has a standard deviation of {spread:.3g}: use partition 'finite_sample' or estimator 'midpoint'"
        )
    if forecast["tied"] > MANY_TIES:
        messages.append("WARNING: more than half of the comparisons are ties, so targets differ little within a prompt")
    return messages
