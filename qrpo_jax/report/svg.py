"""Drawings as elements of a page: a matplotlib figure becomes SVG whose colours follow the page's scheme.

The same numbers give the same text, byte for byte. Colours are variables of the page's style sheet, so that a plot
follows a light or dark scheme; each has a fallback for pages that set none.
"""

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib.style
from markupsafe import escape
from matplotlib.figure import Figure

WIDTH, HEIGHT = 5.2, 3.1  # inches; a page scales plots to its columns

# What is drawn, as a variable of the style sheet with its fallback. Each pair differs in lightness and in line
# style too, for readers who do not see the hues apart. Black stands for the page's own text colour.
COLOURS = {
    "#c2560a": "var(--reference, #c2560a)",
    "#0067a5": "var(--policy, #0067a5)",
    "#00795c": "var(--high, #00795c)",
    "#a8477f": "var(--low, #a8477f)",
    "#9a9a9a": "var(--rule, #9a9a9a)",
    "#000000": "currentColor",
    "#6a51b5": "var(--violet, #6a51b5)",
    "#7d5a1e": "var(--brown, #7d5a1e)",
    "#128298": "var(--teal, #128298)",
    "#5d6770": "var(--grey, #5d6770)",
}
REFERENCE, POLICY, HIGH, LOW, RULE, INK, *_OTHERS = COLOURS
SERIES = (POLICY, REFERENCE, HIGH, LOW, *_OTHERS)  # curves of several kinds
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)))
# Curves of one kind in order, from mild to strong.
RAMP = ("#3c049b", "#6a00a8", "#9613a1", "#b93289", "#d5546e", "#e8764f", "#d99a12")
COLOURS |= {colour: f"var(--ramp-{i}, {colour})" for i, colour in enumerate(RAMP, 1)}

STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.35,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
}


def render(
    name: str,
    title: str,
    draw: Callable[..., None],
    *,
    panels: int = 1,
    height: float = HEIGHT,
    shared: bool = True,
) -> str:
    """What `draw` puts on the axes, as an element of a page.

    Args:
      name: of the plot, different from those of others on the page.
      title: above it, and what is read out in its place.
      draw: takes one axes a panel, from top to bottom.
      panels: number of panels.
      height: inches of the first one; each further one adds 0.9.
      shared: whether panels share their x axis.
    """
    # The salt makes element ids a function of the plot, and different between the plots of a page.
    with matplotlib.style.context(["default", STYLE | {"svg.hashsalt": name}]):
        figure = Figure(figsize=(WIDTH, height + 0.9 * (panels - 1)), layout="constrained")
        axes = figure.subplots(panels, 1, sharex=shared, squeeze=False)[:, 0]
        axes[0].set_title(title)
        draw(*axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return inline(text.getvalue(), title)


def inline(svg: str, label: str) -> str:
    """An SVG file as an element of a page: no prologue, no metadata or name spaces, nothing that is fetched."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None, "matplotlib writes one"
    svg = re.sub(
        r"<svg[^>]*>",
        f'<svg class="plot" {view[0]} role="img" aria-label="{escape(label)}" fill="currentColor">',
        svg,
        count=1,
    )
    svg = svg.replace("xlink:href", "href")
    # Ids of groups are alike in all plots; those that are referred to are hashes.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font(-family)?: ([^;\"]*?)('DejaVu Sans'[^;\"]*)", r"font\1: \2system-ui, sans-serif", svg)
    return re.sub("|".join(COLOURS), lambda found: COLOURS[found[0]], svg).strip()
