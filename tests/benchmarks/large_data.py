"""Trains on a data set of millions of rows, and prints the time of each phase and the memory of the process.

    python -m tests.benchmarks.large_data --model=FOLDER --rows=2000000 --folder=DIR

Rows of four completions are generated as a run's stage writes them: a prompt of text, tokens of log-normal lengths
(medians 50 and 180, at most 512 together), rewards, log π_ref. Then `--config.stages=train` runs on them with a tiny
model until it has made --steps steps, gets SIGTERM, and saves. Its memory is read from the kernel every second: the
most that was resident, and the most that was its own and not a file's.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Completion, Message, Row

UNIT = 8192  # rows of a file
SIBLINGS = 4
MOST = 512  # tokens
WORDS = ("once", "there", "was", "a", "little", "girl", "who", "liked", "to", "play", "with", "her", "red", "ball")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face folder of a tiny model")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--folder", type=Path, required=True, help="for rows and run; 5 GB a million rows")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args(arguments)
    rows = options.folder / f"rows-{options.rows}"
    if not (rows / row_files.INFO_FILE).exists():
        began = time.monotonic()
        vocabulary = len(AutoTokenizer.from_pretrained(options.model))
        tokens = generate(rows, options.rows, vocabulary)
        print(f"{options.rows:,} rows, {tokens / 1e9:.2f} G tokens written in {time.monotonic() - began:.0f} s")
    train(options, rows)


def generate(folder: Path, count: int, vocabulary: int) -> int:
    """Writes rows, and returns the number of tokens of their completions."""
    units, total = -(-count // UNIT), 0
    for unit in range(units):
        if row_files.unit_done(folder, unit, units):
            continue
        rng, size = np.random.default_rng(unit), min(UNIT, count - unit * UNIT)
        prompts = np.clip(np.exp(rng.normal(3.2, 0.9, size)), 2, 50).astype(int)
        lengths = np.clip(np.exp(rng.normal(5.2, 0.9, (size, SIBLINGS))), 2, 390).astype(int)
        rewards = rng.standard_normal((size, SIBLINGS))
        rows = []
        for i in range(size):
            text = " ".join(WORDS[w] for w in rng.integers(0, len(WORDS), prompts[i]))
            completions = tuple(
                Completion(
                    "",
                    rng.integers(3, vocabulary, int(length), dtype=np.int32),
                    True,
                    "reference",
                    float(reward),
                    reference_log_prob=-3.0 * float(length),
                )
                for length, reward in zip(lengths[i], rewards[i], strict=True)
            )
            rows.append(Row(f"row-{unit * UNIT + i}", (Message("user", text),), "", completions))
        row_files.write_unit(folder, unit, units, rows)
        total += int(lengths.sum())
    row_files.finish(folder, units)
    return total


def train(options: argparse.Namespace, rows: Path) -> None:
    """Runs stage `train` until it has made its steps, and prints what its phases took."""
    run = options.folder / "run"
    command = [sys.executable, "-m", "qrpo_jax.main", "--config=default", f"--workdir={run}", "--config.stages=train"]
    command += [f"--config.prompts.source=rows:{rows}", "--config.prompts.count=0", "--config.prompts.held_out=0"]
    command += [f"--config.model.path={options.model}", "--config.model.template=plain", "--config.train.log_every=1"]
    command += [f"--config.pack.max_tokens={MOST}", f"--config.prompts.max_tokens={MOST}"]
    print(" ".join(command))
    began, most, log = time.monotonic(), {"VmRSS": 0, "RssAnon": 0}, options.folder / "log"
    with log.open("w") as written, log.open() as said:
        process = subprocess.Popen(command, stderr=written)
        stopped = False
        while process.poll() is None:
            for line in said.read().splitlines():
                if line.strip() and "%|" not in line:
                    print(f"{time.monotonic() - began:7.1f} s  {most['RssAnon'] / 1e6:5.2f} GB  {line}", flush=True)
            for name, kilobytes in memory(process.pid).items():
                most[name] = max(most[name], kilobytes)
            if not stopped and steps(run) >= options.steps:
                stopped = True
                print(f"{time.monotonic() - began:7.1f} s  {options.steps} steps")
                process.send_signal(signal.SIGTERM)
            time.sleep(1)
        print(said.read())
    resident, own = (most[name] / 1e6 for name in ("VmRSS", "RssAnon"))
    print(f"status {process.returncode}; most resident {resident:.2f} GB, own {own:.2f} GB")


def memory(pid: int) -> dict[str, int]:
    """Kilobytes that a process has in memory: all of it, and what is no file's."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return {}
    return {name: int(found[1]) for name in ("VmRSS", "RssAnon") if (found := re.search(rf"{name}:\s+(\d+)", status))}


def steps(run: Path) -> int:
    """The last step in the metrics of stage `train`."""
    try:
        return int(json.loads((run / "train" / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    except (FileNotFoundError, IndexError, ValueError):
        return 0


if __name__ == "__main__":
    main()
