"""Plots as elements of a page: matplotlib figures become inline SVG.

Equal numbers give equal bytes. Colours are variables of the page's style sheet, so that plots follow its light or dark
scheme; each has a fallback for pages that do not set it.
"""

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib.style
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH, HEIGHT = 5.2, 3.1  # inches; a page scales plots to its columns

# Colours in matplotlib, and in the page: a variable of its style sheet with a fallback. Curves that are drawn together
# also differ in lightness or line style, for readers who cannot distinguish the hues. Black becomes the text colour.
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
# For curves of one kind in order, such as those of several β.
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
    """Renders a plot as an element of a page.

    Args:
      name: unique among the plots of the page.
      title: shown above the plot, and read out by screen readers.
      draw: draws on the axes; takes one for each panel, from top to bottom.
      panels: number of panels.
      height: inches of a single panel; each further panel adds 0.9 to the plot.
      shared: whether the panels share their x axis.

    Returns:
      An <svg> element.
    """
    # With this salt, element ids depend on the plot alone and differ between the plots of a page.
    with matplotlib.style.context(["default", STYLE | {"svg.hashsalt": name}]):
        figure = Figure(figsize=(WIDTH, height + 0.9 * (panels - 1)), layout="constrained")
        axes = figure.subplots(panels, 1, sharex=shared, squeeze=False)[:, 0]
        axes[0].set_title(title)
        draw(*axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return inline(text.getvalue(), title)


def inline(svg: str, label: str) -> str:
    """Turns an SVG file into an element of a page, without prologue, metadata, name spaces or links."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None, "matplotlib writes a viewBox"
    svg = re.sub(
        r"<svg[^>]*>",
        f'<svg class="plot" {view[0]} role="img" aria-label="{escape(label)}" fill="currentColor">',
        svg,
        count=1,
    )
    svg = svg.replace("xlink:href", "href")
    # Ids of groups repeat from plot to plot, and nothing refers to them.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font(-family)?: ([^;\"]*?)('DejaVu Sans'[^;\"]*)", r"font\1: \2system-ui, sans-serif", svg)
    return re.sub("|".join(COLOURS), lambda match: COLOURS[match[0]], svg).strip()


def legend_below(axes: Axes) -> None:
    """Draws the legend below the plot, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max(len(label) for label in labels)
    columns = max(1, min(4, 66 // (longest + 6), len(labels)))
    axes.figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)
