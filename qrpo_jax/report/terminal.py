"""Text for a terminal: hostile characters made harmless, long lines wrapped, numbers as a small histogram."""

import unicodedata
from collections.abc import Sequence

from qrpo_jax.evaluation.histogram import Histogram
from qrpo_jax.report.texts import INVISIBLE

NARROWEST = 20  # columns of a wrapped line, at least
TAB = 4  # columns
BLOCKS = " ▏▎▍▌▋▊▉█"  # eighths of a column
MARKS = ("Mn", "Me")  # Unicode categories that take no column
MOST_MARKS = 4  # on one character; more would cover the lines around it


def harmless(text: str) -> str:
    """Text without anything that a terminal would obey, such as escape sequences; line breaks stay.

    >>> harmless("a" + chr(27) + "[2J" + chr(9) + "b" + chr(13) + chr(10) + chr(0x202E))
    'a⟨U+001B⟩[2J    b⟨U+000D⟩\\n⟨U+202E⟩'
    """
    shown, marks = [], 0
    for character in text:
        category = unicodedata.category(character)
        marks = marks + 1 if category in MARKS else 0
        if character == "\n":
            shown.append(character)
        elif character == "\t":
            shown.append(" " * TAB)
        elif category in INVISIBLE or marks > MOST_MARKS:
            shown.append(f"⟨U+{ord(character):04X}⟩")
        else:
            shown.append(character)
    return "".join(shown)


def one_line(text: str) -> str:
    """Harmless text on one line.

    >>> one_line("a" + chr(10) + "b")
    'a⟨U+000A⟩b'
    """
    return harmless(text).replace("\n", "⟨U+000A⟩")


def columns_of(character: str) -> int:
    """Columns of a terminal that a character takes."""
    if unicodedata.category(character) in MARKS:
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def wrapped(text: str, width: int, margin: str = "") -> list[str]:
    """Lines of harmless text, broken at spaces where there are some, each behind a margin. No space is lost.

    >>> wrapped("one two" + chr(10) + "   three", 7 + NARROWEST, "| ")
    ['| one two', '|    three']
    """
    room = max(width - sum(map(columns_of, margin)), NARROWEST)
    return [margin + part for line in harmless(text).split("\n") for part in _broken(line, room)]


def _broken(line: str, room: int) -> list[str]:
    """A line in parts of at most so many columns."""
    parts, start, space, used = [], 0, 0, 0
    widths = [columns_of(character) for character in line]
    for i, character in enumerate(line):
        used += widths[i]
        if used > room:
            end = space if space > start else i
            parts.append(line[start:end])
            start, used = end, sum(widths[end : i + 1])
        if character == " ":
            space = i + 1
    return [*parts, line[start:]]


def bars(found: Histogram, width: int) -> list[str]:
    """A line for each bin: its range, a bar, and the number of values in it.

    >>> for line in bars(Histogram([1.0, 4.0, 7.0, 10.0], [3, 0, 1], True), 20): print(line)
    1 to 3  ██████████ 3
    4 to 6             0
    7 to 9  ███▍       1
    """
    labels = [bin_label(*ends, found.whole) for ends in zip(found.edges, found.edges[1:], strict=False)]
    return labelled_bars(labels, found.counts, width)


def labelled_bars(labels: Sequence[str], numbers: Sequence[int], width: int) -> list[str]:
    """A line for each number: its label, a bar, and the number."""
    counts = [f"{count:,}" for count in numbers]
    left, right = (max(map(len, texts), default=0) for texts in (labels, counts))
    room, most = max(width - left - right - 3, 1), max(numbers, default=0)
    return [
        f"{label:>{left}}  {bar_of(number / most, room):<{room}} {count:>{right}}"
        for label, number, count in zip(labels, numbers, counts, strict=True)
    ]


def bin_label(start: float, end: float, whole: bool) -> str:
    """What values a bin has."""
    last = end - 1 if whole else end
    return number(start) if last <= start else f"{number(start)} to {number(last)}"


def bar_of(share: float, room: int) -> str:
    """A bar of this share of the room; never empty for a share above 0."""
    eighths = max(round(share * room * 8), 1) if share > 0 else 0
    return "█" * (eighths // 8) + BLOCKS[eighths % 8].strip()


def number(value: float) -> str:
    """A number in about four digits.

    >>> number(0.123456), number(1234567.0), number(17.0)
    ('0.1235', '1.235e+06', '17')
    """
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e6 else f"{value:,.4g}"
