"""The methods of a sweep and its settings: their names, and their order."""

from collections.abc import Mapping
from typing import Any

Found = Mapping[str, Any]  # content of sweep.json


def methods(found: Found) -> list[tuple[str, Mapping[str, Any]]]:
    """The chosen setting of each method, the best on the reporting half first."""
    ordered = sorted(found["choice"], key=lambda one: -one["reporting"]["reward"]["mean"])
    return [(method_name(one["method"], found["columns"]), one) for one in ordered]


def method_name(method: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """A method on one line; a number stands behind the name of its key.

    >>> method_name({"train.objective": "dpo", "select.reference_count": 3}, {"select.reference_count": "references"})
    'dpo, references=3'
    """
    parts = [value if isinstance(value, str) else setting_name({key: value}, columns) for key, value in method.items()]
    return ", ".join(parts) or "all settings"


def setting_name(settings: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """A setting on one line, such as "beta=0.3, objective=qrpo"."""
    values = {key: f"{value:g}" if isinstance(value, float) else str(value) for key, value in settings.items()}
    return ", ".join(f"{columns.get(key, key)}={value}" for key, value in values.items())


def method_of(line: Mapping[str, Any], found: Found) -> str:
    """The name of a setting's method."""
    method = {key: line["settings"][key] for key in found["method"] if key in line["settings"]}
    return method_name(method, found["columns"])


def places(found: Found) -> dict[str, int]:
    """The place of each method, and of each setting, in the order of the sweep, which gives them their colors."""
    of_methods = [method_of(line, found) for line in found["settings"]]
    of_settings = [setting_name(line["settings"], found["columns"]) for line in found["settings"]]
    numbered = {name: place for place, name in enumerate(dict.fromkeys(of_settings))}
    return numbered | {name: place for place, name in enumerate(dict.fromkeys(of_methods))}
