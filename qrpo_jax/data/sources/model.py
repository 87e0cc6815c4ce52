"""Prompts that the reference policy writes itself: the beginnings of texts sampled from it."""

from collections.abc import Mapping, Sequence

from qrpo_jax.data.rows import Message, Row
from qrpo_jax.data.sources.held_out import held_out_number
from qrpo_jax.data.sources.source import DrawBeginnings, Source, SourceOptions


class Beginnings:
    """`count` sampled beginnings; a prompt is empty where the model ended its text at once."""

    def __init__(self, split: str, count: int, draw: DrawBeginnings) -> None:
        self.count = count
        self._split, self._draw = split, draw

    def rows(self, indices: Sequence[int]) -> list[Row]:
        texts = self._draw(indices, self._split)
        return [
            Row(f"{self._split}-{index}", (Message("user", text),)) for index, text in zip(indices, texts, strict=True)
        ]


def open_model(settings: SourceOptions) -> Mapping[str, Source]:
    draw = settings.draw_beginnings
    assert draw is not None, "opened only where the reference policy can be sampled"
    counts = {"train": settings.count, "eval": held_out_number(settings.count, settings.held_out)}
    return {split: Beginnings(split, count, draw) for split, count in counts.items()}
