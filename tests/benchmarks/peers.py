"""Alternates training steps of this package with those of PyTorch trainers, and prints the ratio of their medians.

    python -m tests.benchmarks.peers --model=FOLDER --rows=ROWS.jsonl \\
        --peer-python=PATH --peer-checkout=DIR --trl-python=PATH

ROWS.jsonl has a prompt, completions and rewards a line, as source `jsonl` reads them. Instead of both, --shape=30M or
--shape=42M draws a random Llama and random rows of 512 tokens (`random_llama`).

Every side is a process of its own interpreter. The driver asks one at a time for one step, so that only one computes at
any moment, and a change of the machine's speed hits all. This package plans batches of --batch pairs with its defaults;
the others train on the same pairs in the same order, padded as they do it. Tokens are those of prompts and completions
without padding, a prompt counted once for each completion, for all sides alike.

A step has everything from one batch to the next: collating, forward and backward pass, optimizer, metrics. The
published trainer and TRL compute the reference's log-probs in each step; with --stored they store them beforehand, as
this package does. The time of its stage `reference` is printed too, and a ratio that counts it.

The published trainer needs a checkout of CLAIRE-Labo/quantile-reward-policy-optimization, and an environment with
torch, trl 0.14.0, transformers 4.48.3, accelerate 1.3.0, "datasets<4", peft, wandb and "numpy<2.3". TRL needs trl>=1.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.random_llama import SHAPES, write_random_llama
from tests.benchmarks.worker import Worker

OURS = "qrpo_jax"


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    with tempfile.TemporaryDirectory() as scratch:
        model, rows = options.model, options.rows
        if options.shape:
            model, rows = write_random_llama(Path(scratch), options.shape, rows=max(16, 2 * options.batch))
        records = alternate(start(options, model, read_rows(rows), Path(scratch)), options.warm_up, options.steps)
    print("\n".join(summary(records)))
    load = os.getloadavg()[0]
    print(
        f"load of the machine in the last minute: {load:.1f}; more than the CPUs in use means that others compute too"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Hugging Face folder of a Llama")
    parser.add_argument("--rows", help="JSON-lines file")
    parser.add_argument("--shape", choices=SHAPES, help="a random Llama of this size instead")
    parser.add_argument("--batch", type=int, help="pairs a step; default: 16, or 2 with --shape")
    parser.add_argument("--max-tokens", type=int, default=512, help="longest prompt and completion together")
    parser.add_argument("--steps", type=int, default=20, help="measured steps of each side")
    parser.add_argument("--warm-up", type=int, default=3, help="steps of each side before those")
    parser.add_argument("--cores", type=int, help="CPUs to use; default: all of this process")
    parser.add_argument("--stored", action="store_true", help="the others store the reference's log-probs too")
    parser.add_argument("--peer-python", help="interpreter with the published trainer's stack")
    parser.add_argument("--peer-checkout", help="its source")
    parser.add_argument("--trl-python", help="interpreter with TRL")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of our config")
    parser.add_argument("--verbose", action="store_true", help="let the workers write to standard error")
    options = parser.parse_args(arguments)
    if bool(options.shape) == bool(options.model and options.rows):
        parser.error("name --model and --rows, or --shape")
    options.batch = options.batch or (2 if options.shape else 16)
    return options


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, each with an id and the rewards of its completions as references."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [row | {"id": f"row-{i}", "reference_rewards": row["rewards"]} for i, row in enumerate(rows)]


def start(options: argparse.Namespace, model: str, rows: list[dict[str, Any]], scratch: Path) -> dict[str, Worker]:
    """Starts every side that is installed and waits until it is ready; this package first, which plans the batches."""
    steps = options.warm_up + options.steps
    log = None if options.verbose else scratch
    write_lines(scratch / "rows.jsonl", rows)
    sizes = [str(options.batch), str(options.max_tokens)]
    ours = Worker(
        OURS,
        [
            sys.executable,
            "this_package.py",
            model,
            str(scratch / "rows.jsonl"),
            str(scratch / "run"),
            *sizes,
            str(steps),
        ]
        + options.set,
        log,
    )
    workers = {OURS: ours}
    by_id = {row["id"]: row for row in rows}
    batches = [[pair_of(by_id, *names) for names in batch] for batch in ours.facts["batches"]]
    uneven = {len(batch) for batch in batches} - {options.batch}
    assert not uneven, f"batches of {uneven} pairs instead of {options.batch}"
    write_lines(scratch / "pairs.jsonl", [pair for batch in batches for pair in batch])
    tail = [model, str(scratch / "pairs.jsonl"), *sizes, "stored" if options.stored else "in_step"]
    for name, command in others(options).items():
        workers[name] = Worker(name, [*command, *tail], log)
    print(f"{processor()}, {len(os.sched_getaffinity(0))} CPUs; {options.batch} pairs a step")
    for name, worker in workers.items():
        print(f"{name}: {worker.facts['about']}")
    return workers


def processor() -> str:
    """The name of this machine's processor."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def others(options: argparse.Namespace) -> dict[str, list[str]]:
    """The beginning of each other side's command; says which sides are not installed."""
    commands = {}
    if options.peer_python and options.peer_checkout:
        commands["published"] = [options.peer_python, "published_trainer.py", options.peer_checkout]
    else:
        print("published trainer: not measured; name --peer-python and --peer-checkout")
    if options.trl_python:
        commands["trl"] = [options.trl_python, "trl_trainer.py"]
    else:
        print("TRL: not measured; name --trl-python")
    return commands


def pair_of(by_id: dict[str, dict[str, Any]], chosen: str, rejected: str) -> dict[str, Any]:
    """A pair for the other sides, from the names of its two completions, "ROW ID/INDEX"."""
    (row_id, high), (other_id, low) = chosen.rsplit("/", 1), rejected.rsplit("/", 1)
    assert row_id == other_id, (chosen, rejected)
    row = by_id[row_id]
    return {
        "prompt": row["prompt"],
        "chosen": row["completions"][int(high)],
        "rejected": row["completions"][int(low)],
        "chosen_reward": row["rewards"][int(high)],
        "rejected_reward": row["rewards"][int(low)],
        "reference_rewards": row["rewards"],
    }


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def alternate(workers: dict[str, Worker], warm_up: int, steps: int) -> dict[str, dict[str, Any]]:
    """One step of each side after the other; ends the workers.

    Returns:
      For each side its facts and, as `steps`, the reports of its measured steps.
    """
    records: dict[str, dict[str, Any]] = {name: worker.facts | {"steps": []} for name, worker in workers.items()}
    for number in range(warm_up + steps):
        for name, worker in workers.items():
            report = worker.step()
            if number >= warm_up:
                records[name]["steps"].append(report)
    for worker in workers.values():
        worker.stop()
    return records


def summary(records: dict[str, dict[str, Any]]) -> list[str]:
    """The lines of the result: each side's medians, and the ratio of ours to those of the others."""
    medians = {name: medians_of(record["steps"]) for name, record in records.items()}
    lines = [
        f"{'':12}{'s a step':>10}{'CPU s':>9}{'tokens a step':>15}{'tokens/s':>11}{'tokens/CPU s':>14}{'peak GiB':>10}"
    ]
    for name, m in medians.items():
        lines.append(
            f"{name:12}{m['seconds']:10.3f}{m['cpu_seconds']:9.3f}{m['tokens']:15,.0f}{m['tokens_per_second']:11,.0f}"
            f"{m['tokens_per_cpu_second']:14,.0f}{m['peak_gib']:10.2f}"
        )
    ours, pass_seconds = medians[OURS], records[OURS]["reference_seconds_per_token"]
    lines.append(f"{OURS}: stage reference takes {1e6 * pass_seconds:.2f} microseconds a token, once for all epochs")
    with_pass = 1 / (1 / ours["tokens_per_second"] + pass_seconds)
    for name, m in medians.items():
        if name == OURS:
            continue
        lines.append(
            f"{OURS} / {name}: {ours['tokens_per_second'] / m['tokens_per_second']:.2f} x tokens/s "
            f"({with_pass / m['tokens_per_second']:.2f} x with the reference's pass added to every step), "
            f"{ours['tokens_per_cpu_second'] / m['tokens_per_cpu_second']:.2f} x tokens per CPU second"
        )
        if abs(m["tokens"] / ours["tokens"] - 1) > 0.01:
            lines.append(f"WARNING: {name} counts {m['tokens']:,.0f} tokens a step, this package {ours['tokens']:,.0f}")
    return lines


def medians_of(steps: list[dict[str, float]]) -> dict[str, float]:
    """Medians over steps of what they report, and of their speeds."""
    columns = {name: [step[name] for step in steps] for name in steps[0]}
    columns["tokens_per_second"] = [step["tokens"] / step["seconds"] for step in steps]
    columns["tokens_per_cpu_second"] = [step["tokens"] / step["cpu_seconds"] for step in steps]
    return {name: statistics.median(values) for name, values in columns.items()}


if __name__ == "__main__":
    main()
