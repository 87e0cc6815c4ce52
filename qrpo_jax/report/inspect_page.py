"""The page of stage `inspect`, and its lines for a terminal: from its results to text."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from qrpo_jax.evaluation.histogram import Histogram
from qrpo_jax.report.page import render
from qrpo_jax.report.picture import POLICY
from qrpo_jax.report.picture import render as render_plot
from qrpo_jax.report.rendered import Rendered, Trained
from qrpo_jax.report.terminal import bars, one_line, wrapped
from qrpo_jax.report.terminal import number as short
from qrpo_jax.report.texts import number

TEMPLATE = "inspect.html"
PROMPT_MARGIN, TRAINED_MARGIN = "  │ ", "  █ "
PROMPT_LINES, COMPLETION_LINES = 12, 8  # of an example in a terminal


def build(results: dict[str, Any], examples: Sequence[Rendered]) -> str:
    """The page as HTML.

    Args:
      results: content of inspect.json.
    """
    spreads = results["tokens"] | {"reward": results["rewards"]}
    plots = {name: Histogram(**found) for name, found in results["histograms"].items()}
    return render(
        TEMPLATE,
        title=f"What {results['source']['name']} holds",
        results=results,
        looked_at=looked_at(results),
        facts=facts(results),
        columns=("", "number", "mean", "least", "5%", "median", "95%", "most"),
        tokens=[(name, *cells(spread)) for name, spread in spreads.items() if spread["number"]],
        plots=[plot(name, found) for name, found in plots.items() if len(found.counts) > 1],
        examples=examples,
        notes=notes,
    )


def looked_at(results: dict[str, Any]) -> str:
    """How many rows the figures are of."""
    sampled, count = results["sampled"]["rows"], results["counts"]["train"]
    if sampled == count:
        return f"all {count:,} rows to train on"
    return f"{sampled:,} of {count:,} rows to train on, spread evenly"


def cells(spread: dict[str, float]) -> list[str]:
    """A row of the table of lengths."""
    names = ("mean", "least", "5%", "median", "95%", "most")
    return [f"{spread['number']:,}", *(short(spread[name]) if name in spread else "–" for name in names)]


def facts(results: dict[str, Any]) -> list[tuple[str, str]]:
    """What rows bring, as a label and a text each."""
    rows, completions = results["sampled"]["rows"], results["completions"]
    references, pairs, rewards = results["references"], results["pairs"], results["rewards"]
    total = sum(completions["written by"].values())
    by = ", ".join(f"{count:,} by {source}" for source, count in completions["written by"].items())
    entries = [("rows with completions", share(completions["rows with completions"], rows))]
    if total:
        entries += [
            ("completions", f"{total:,} ({by}), {range_of(completions['completions a row'])} a row"),
            ("with a reward", share(completions["with reward"], total)),
            ("with log π_ref", share(completions["with log π_ref"], total)),
            ("rows with two or more", share(pairs["rows with two completions or more"], rows)),
        ]
    if pairs["of which only the order is known"]:
        entries.append(("pairs in an order without rewards", share(pairs["of which only the order is known"], rows)))
    if pairs["with rewards"]:
        entries.append(("best and worst are equal", share(pairs["best and worst are equal"], pairs["with rewards"])))
    if pairs["chosen has the lower reward"]:
        entries.append(("chosen has the lower reward", share(pairs["chosen has the lower reward"], rows)))
    if rewards["number"]:
        entries.append(("different rewards", f"{rewards['different']:,} among {rewards['number']:,}"))
    entries.append(("references a row", range_of(references["references a row"])))
    if own := references["rows whose completions are each other's references"]:
        entries.append(("completions are each other's references", share(own, rows)))
    if references["comparisons"]:
        tied = f"{references['share of ties']:.1%} of {references['comparisons']:,} comparisons"
        entries.append(("ties with references", tied))
        entries.append(("references are all equal", share(references["rows whose references are all equal"], rows)))
    return entries


def share(number: int, total: int) -> str:
    return f"{number:,} of {total:,}" + (f" ({number / total:.1%})" if total and 0 < number < total else "")


def range_of(spread: dict[str, float]) -> str:
    """Least to most, with the median."""
    if not spread["number"]:
        return "none"
    low, middle, high = (short(spread[name]) for name in ("least", "median", "most"))
    return low if low == high else f"{low} to {high}, median {middle}"


def notes(completion: Trained) -> str:
    """What is said beside a completion."""
    reward = "" if np.isnan(completion.reward) else f", reward {number(completion.reward)}"
    fate = "" if completion.fits else ", does not fit pack.max_tokens"
    return f"{completion.tokens:,} tokens trained on, by {completion.source}{reward}{fate}"


def plot(name: str, found: Histogram) -> Markup:
    """A histogram as an element of a page."""

    def draw(axes: Axes) -> None:
        bins = len(found.counts)
        axes.bar(np.arange(bins) + 0.5, found.counts, width=0.92, color=POLICY)
        axes.set_xticks(range(bins + 1), [short(edge) for edge in found.edges], fontsize=7)
        axes.grid(axis="x", visible=False)
        axes.set_ylabel("number")

    return render_plot(name.replace(" ", "-"), name.capitalize(), draw, height=2.3)


def terminal_lines(results: dict[str, Any], examples: Sequence[Rendered], width: int) -> Iterator[str]:
    """The results for a terminal of this width."""
    yield from source_lines(results, width)
    yield ""
    yield from wrapped(f"of {looked_at(results)}:", width)
    entries = facts(results)
    label = max(len(name) for name, _ in entries)
    for name, text in entries:
        first, *rest = wrapped(text, width - label - 4)
        yield f"  {name:<{label}}  {first}"
        yield from (" " * (label + 4) + line for line in rest)
    yield from token_lines(results, width)
    if results["losses"] or results["refused"]:
        yield ""
    for entry in results["losses"]:
        first = f", the first: {entry['first']}" if entry["first"] else ""
        key = f" (config.{entry['key']})" if entry["key"] else ""
        yield from wrapped(f"WARNING: {entry['number']:,} of {entry['of']:,} {entry['what']}{key}{first}", width)
    for line in results["refused"]:
        yield from wrapped(f"WARNING: {line}", width)
    for example in examples:
        yield ""
        yield from example_lines(example, width)
    yield ""
    yield from wrapped(f"to begin with: --config.stages={results['next']['stages']}", width)
    yield from wrapped(f"({results['next']['why']})", width)


def source_lines(results: dict[str, Any], width: int) -> Iterator[str]:
    source, counts = results["source"], results["counts"]
    yield from wrapped(f"{source['name']}: {source['layout']}", width)
    unused = f", {counts['left out']:,} not used" if counts["left out"] else ""
    yield from wrapped(f"{counts['train']:,} rows to train on, {counts['held out']:,} held out{unused}", width)
    for line in results["dropped"]:
        yield from wrapped(f"WARNING: {line}", width)


def token_lines(results: dict[str, Any], width: int) -> Iterator[str]:
    """The table of lengths, and histograms."""
    yield ""
    names = ("number", "mean", "least", "5%", "median", "95%", "most")
    rows = [(name, cells(spread)) for name, spread in results["tokens"].items() if spread["number"]]
    if not rows:
        return
    rows += [("reward", cells(results["rewards"]))] if results["rewards"]["number"] else []
    label = max(len(name) for name, _ in rows)
    rooms = [max(7, *map(len, column)) for column in zip(*(row for _, row in rows), strict=True)]
    for name, row in (("tokens", names), *rows):
        yield f"{name:<{label}}" + "".join(f" {cell:>{room}}" for cell, room in zip(row, rooms, strict=True))
    for name, found in results["histograms"].items():
        if len(found["counts"]) > 1:
            yield from ("", name)
            yield from (f"  {line}" for line in bars(Histogram(**found), width - 2))


def example_lines(example: Rendered, width: int) -> Iterator[str]:
    """A row as it is trained on, cut where it is long."""
    yield from wrapped(f"example {one_line(example.place)}: prompt of {example.tokens:,} tokens", width)
    text = "".join(example.prompt)
    if example.left_out:
        head, tail = "".join(example.prompt[: example.split]), "".join(example.prompt[example.split :])
        text = f"{head} ... {tail}"
    yield from cut(wrapped(text, width, PROMPT_MARGIN), PROMPT_LINES, PROMPT_MARGIN)
    for i, completion in enumerate(example.completions):
        yield from wrapped(f"  completion {i}: {notes(completion)}", width)
        more = f" ... {completion.left_out:,} more tokens" if completion.left_out else ""
        text = "".join(completion.pieces) + more
        yield from cut(wrapped(text, width, TRAINED_MARGIN), COMPLETION_LINES, TRAINED_MARGIN)
    if example.brought > len(example.completions):
        yield f"  and {example.brought - len(example.completions)} more completions"
    if not example.brought:
        yield "  no completion yet"


def cut(lines: list[str], most: int, margin: str) -> list[str]:
    """Lines without those in the middle, if there are many."""
    if len(lines) <= most:
        return lines
    half = most // 2
    return [*lines[:half], f"{margin}... {len(lines) - 2 * half} more lines ...", *lines[-half:]]
