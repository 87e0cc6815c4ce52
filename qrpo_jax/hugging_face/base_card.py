"""What the folder of a base model says of its licence: the metadata of its model card, and its licence files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

CARD = "README.md"
DOCUMENTS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")  # files that go with every copy of a model
CARRIED = ("license", "license_name", "license_link", "language")  # metadata that hold for a fine-tuned model too
LARGEST = 1 << 20  # bytes of a document


class BaseCard(NamedTuple):
    """What is carried over from a base.

    Attributes:
      metadata: entries of its card's metadata.
      documents: its licence files by name.
    """

    metadata: Mapping[str, Any]
    documents: Mapping[str, bytes]


def read_base(folder: Path) -> BaseCard:
    """What a model's folder says; nothing where it has no card, or one whose metadata are no YAML."""
    card = folder / CARD
    metadata = front_matter(card.read_text("utf-8", "replace")) if card.is_file() else {}
    paths = sorted(path for pattern in DOCUMENTS for path in folder.glob(pattern) if path.is_file())
    return BaseCard(
        {key: metadata[key] for key in CARRIED if key in metadata},
        {path.name: path.read_bytes() for path in paths if path.stat().st_size <= LARGEST},
    )


def front_matter(text: str) -> dict[str, Any]:
    """The metadata of a card: YAML between two lines of three hyphens at its beginning.

    >>> front_matter("---\\nlicense: apache-2.0\\n---\\n# A model"), front_matter("# A model")
    ({'license': 'apache-2.0'}, {})
    """
    first, *lines = text.lstrip("\ufeff").splitlines() or [""]
    if first.strip() != "---" or "---" not in [line.rstrip() for line in lines]:
        return {}
    end = [line.rstrip() for line in lines].index("---")
    try:
        found = yaml.safe_load("\n".join(lines[:end]))
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
