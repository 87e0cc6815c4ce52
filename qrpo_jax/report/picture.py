"""Pictures: plots as elements of a page, drawn once for a light and once for a dark page.

A picture is a `<picture>` with two SVG images as data, of which a browser shows the one for its color scheme, so that
a page needs no other file. Equal numbers give equal bytes.
"""

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib.style
from cycler import cycler
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.7, 2.9  # inches; a page scales plots to its columns


class Scheme(NamedTuple):
    """Colors of a page, as its style sheet has them.

    Attributes:
      paper, ink, rule: behind everything, of text, of lines.
      cycle: the colors that plots name "C0", "C1", ...
    """

    paper: str
    ink: str
    rule: str
    cycle: Sequence[str]


# Curves that are drawn together also differ in lightness, marker or dashes, for readers who cannot tell hues apart.
LIGHT = Scheme(
    *("#ffffff", "#1c2126", "#8b939a"),
    ("#c2560a", "#0067a5", "#00795c", "#a8477f", "#6a51b5", "#7d5a1e", "#128298", "#5d6770", "#1c2126")
    + ("#3c049b", "#6a00a8", "#9613a1", "#b93289", "#d5546e", "#e8764f", "#d99a12"),
)
DARK = Scheme(
    *("#15181b", "#e4e7ea", "#80878e"),
    ("#f2a25c", "#62b5f0", "#41cb9f", "#e79bc9", "#b6a4f5", "#d9b06c", "#63cfe3", "#b4bcc4", "#e4e7ea")
    + ("#8a7bf0", "#a678f0", "#c976e2", "#e578c0", "#f28a93", "#f6a765", "#f5d04a"),
)
# A plot names places in the cycle, which matplotlib looks up when it draws in one of the two schemes.
REFERENCE, POLICY, HIGH, LOW, VIOLET, BROWN, TEAL, GREY, INK = (f"C{i}" for i in range(9))
RAMP = tuple(f"C{i}" for i in range(9, 16))  # for curves of one kind in order, such as those of several β
SERIES = (POLICY, REFERENCE, HIGH, LOW, VIOLET, BROWN, TEAL, GREY)  # curves of several kinds
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)))

STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.5,
    "grid.alpha": 0.3,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.5,
    "savefig.dpi": 144,  # of the parts of a plot with too many marks for SVG
}
# The page's own font: the one that plots were laid out in is wider, so everything has room.
FONT = 'text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif!important}'


def render(
    name: str,
    title: str,
    draw: Callable[..., None],
    *,
    panels: int = 1,
    height: float = HEIGHT,
    shared: bool = True,
) -> Markup:
    """Renders a plot as elements of a page: its title, and a picture.

    Args:
      name: unique among the plots of the page.
      title: above the plot, and read out by screen readers.
      draw: draws on the axes; takes one for each panel, from top to bottom. Colors are those of this module.
      panels: number of panels.
      height: inches of a single panel; each further panel adds 0.9 to the plot.
      shared: whether the panels share their x axis.
    """
    size = (WIDTH, height + 0.9 * (panels - 1))
    light, dark = (address(draw_svg(name, draw, scheme, panels, size, shared)) for scheme in (LIGHT, DARK))
    return Markup(
        '<h3 class="title">{title}</h3><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        '<img class="plot" data-plot="{name}" alt="Plot: {title}" width="{width:.0f}" height="{height:.0f}" '
        'src="{light}"></picture>'
    ).format(name=name, title=title, light=light, dark=dark, width=96 * size[0], height=96 * size[1])


def draw_svg(
    name: str, draw: Callable[..., None], scheme: Scheme, panels: int, size: tuple[float, float], shared: bool
) -> str:
    """A plot in one of the schemes, as the text of an SVG file."""
    # With this salt, ids in the file depend on the plot alone.
    style = STYLE | colors(scheme) | {"svg.hashsalt": name}
    with matplotlib.style.context(["default", style]):
        figure = Figure(figsize=size, layout="constrained")
        draw(*figure.subplots(panels, 1, sharex=shared, squeeze=False)[:, 0])
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue().replace("</style>", f"{FONT}</style>", 1)


def colors(scheme: Scheme) -> dict[str, Any]:
    """The settings of matplotlib for a scheme."""
    ink = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
    rule = ("axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    paper = ("axes.facecolor", "figure.facecolor")
    parts = ((ink, scheme.ink), (rule, scheme.rule), (paper, scheme.paper))
    return {key: color for keys, color in parts for key in keys} | {"axes.prop_cycle": cycler(color=scheme.cycle)}


def address(svg: str) -> str:
    """An SVG file as an address that needs no file."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def plain(text: str) -> str:
    """Text for a plot, escaped so that matplotlib does not read it as a formula."""
    return text.replace("$", r"\$")


def legend_below(axes: Axes) -> None:
    """Draws the legend below the plot, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max(len(label) for label in labels)
    columns = max(1, min(4, 66 // (longest + 6), len(labels)))
    axes.figure.legend(handles, labels, loc="outside lower center", ncols=columns)
