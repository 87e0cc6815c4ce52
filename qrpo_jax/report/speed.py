"""The figures of stage `benchmark` as lines for the terminal and as rows of a table."""

from collections.abc import Mapping
from typing import Any

PROGRAMS = {"train": "Training step", "reference": "Log-probs of the reference", "sample": "Sampling"}
COLUMNS = ("", "Tokens/s", "Seconds", "Model TFLOP/s", "MFU", "Waits for the host", "Compilation, s", "Peak memory, GB")


def lines(record: Mapping[str, Any]) -> list[str]:
    """Lines for the terminal, one a program."""
    texts = [about(record)]
    for name in PROGRAMS:
        tokens, seconds, tflops, mfu, host, compilation, memory = cells(record[name])
        texts.append(
            f"{name}: {tokens} tokens/s, {seconds} s a call, {tflops} model TFLOP/s, MFU {mfu}, {host} of the time "
            f"waits for the host, compiled in {compilation} s, peak memory so far {memory} GB"
        )
    return texts


def rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of a table whose columns are `COLUMNS`."""
    return [(title, *cells(record[name])) for name, title in PROGRAMS.items()]


def about(record: Mapping[str, Any]) -> str:
    """What was measured, and against which peak."""
    return (
        f"mix {record['mix']}, on {record['devices']} {record['device']} device(s) in {record['compute_dtype']}; "
        f"MFU of the {record['peak']}"
    )


def cells(program: Mapping[str, Any]) -> tuple[str, ...]:
    """A program's figures in the order of `COLUMNS`."""
    return (
        f"{program['tokens_per_second']:,.0f}",
        f"{program['seconds']:.4g}",
        f"{program['model_tflops_per_second']:.4g}",
        f"{program['mfu']:.1%}",
        f"{program['host_share']:.1%}",
        f"{program['compile_seconds']:.3g}",
        f"{program['peak_memory_gb']:.3g}",
    )
