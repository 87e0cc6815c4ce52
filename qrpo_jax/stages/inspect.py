"""Stage `inspect`: says what a source holds before anything is spent: columns, lengths, rewards, drops, examples.

It needs the model's tokenizer and no weights, compiles nothing, and looks at a bounded sample of the rows. It writes
inspect.json and a page. It runs each time that it is named, and no other stage depends on it.
"""

import shutil
from typing import Any

from qrpo_jax.config.keys import refuse
from qrpo_jax.data.sources import kind_of
from qrpo_jax.data.sources.listed import ListedRows
from qrpo_jax.data.sources.listing import REVERSED
from qrpo_jax.data.sources.source import Source
from qrpo_jax.devices.processes import is_first
from qrpo_jax.errors import UserError
from qrpo_jax.evaluation.histogram import histogram
from qrpo_jax.files import write_json, write_text
from qrpo_jax.job import inspection
from qrpo_jax.job.inspection import Sampled, place_of
from qrpo_jax.job.job import Job
from qrpo_jax.job.prompts import open_sources
from qrpo_jax.job.source_check import check_source
from qrpo_jax.report import inspect_page
from qrpo_jax.report.page import PAGE
from qrpo_jax.report.rendered import Rendered, render_row

RESULTS = "inspect.json"
SHOWN_REFUSALS = 3  # of rows that the chat template refuses
WIDEST = 100  # columns of a terminal that are used


def run(job: Job) -> dict[str, Any]:
    if not is_first():
        return {}
    sources, folder = open_sources(job), job.folder("inspect")
    train = sources["train"]
    sampled = inspection.sample(train, job.text, job.config.inspect.rows)
    results = figures(job, sources, sampled)
    examples = render_examples(job, train, sampled)
    write_json(folder / RESULTS, results)
    write_text(folder / PAGE, inspect_page.build(results, examples))
    width = min(shutil.get_terminal_size((80, 24)).columns, WIDEST)
    job.say("\n".join(line.rstrip() for line in inspect_page.terminal_lines(results, examples, width)))
    job.say(f"inspect: {folder / PAGE}")
    return {"page": PAGE, "results": RESULTS, "rows": len(sampled.rows)}


def figures(job: Job, sources: Any, sampled: Sampled) -> dict[str, Any]:
    """The content of inspect.json."""
    config, train, held_out = job.config, sources["train"], sources["eval"]
    rows = sampled.rows
    limits = config.prompts.max_tokens, config.pack.max_tokens, config.pack.over_long
    lost = inspection.losses(train, sampled, *limits)
    values: dict[str, list[float]] = {
        "tokens of prompts": [one.prompt for one in sampled.measured],
        "tokens of completions": [length for one in sampled.measured for length in one.completions],
        "rewards": [completion.reward for row in rows for completion in row.completions],
    }
    found: dict[str, Any] = {
        "source": {"name": config.prompts.source, "split": config.prompts.split, "layout": layout_line(train)},
        "model": {"path": config.model.path or "a new model", "template": config.model.template},
        "counts": {
            "train": train.count,
            "held out": held_out.count,
            "left out": train.left_out if isinstance(train, ListedRows) else 0,
        },
        "dropped": [one.line() for source in (train, held_out) for one in getattr(source, "dropped", ())],
        "sampled": {"rows": len(rows), "measured": len(sampled.measured)},
        "tokens": inspection.token_figures(sampled),
        "histograms": {name: histogram(found)._asdict() for name, found in values.items()},
        "completions": inspection.completion_figures(rows),
        "rewards": inspection.reward_figures(rows),
        "references": inspection.reference_figures(rows),
        "pairs": inspection.pair_figures(rows, train.where(REVERSED).number if isinstance(train, ListedRows) else 0),
        "losses": [one._asdict() for one in lost],
        "refused": sampled.refused[:SHOWN_REFUSALS],
    }
    return found | {"next": inspection.next_stages(found, new_model=not config.model.path)}


def layout_line(source: Source) -> str:
    """How columns are read, in words."""
    if not isinstance(source, ListedRows):
        return "generated rows"
    return source.layout or "rows as this program writes them (layout 'rows')"


def render_examples(job: Job, source: Source, sampled: Sampled) -> list[Rendered]:
    """Rows from all over the sample, written out."""
    rows = [one.row for one in sampled.measured]
    count = min(job.config.inspect.examples, len(rows))
    chosen = [rows[i * len(rows) // count] for i in range(count)]
    return [render_row(job.text, row, place_of(source, row), job.config.pack.max_tokens) for row in chosen]


def check(job: Job) -> None:
    config = job.config
    check_source(config)
    if kind_of(config.prompts.source).sampled:
        raise refuse("prompts.source", f"{config.prompts.source!r}; these are sampled from the model during the run")
    if open_sources(job)["train"].count == 0:
        raise UserError(f"{config.prompts.source} holds no row to train on (config.prompts.source)")
    job.text  # noqa: B018
