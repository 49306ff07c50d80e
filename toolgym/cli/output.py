"""What commands print: JSON for programs, aligned columns for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any


def print_json(value: Any) -> None:
    """One indented JSON document; nan and infinities become null."""
    print(json.dumps(finite(value), indent=2, ensure_ascii=False, default=str))


def finite(value: Any) -> Any:
    """The value with every float that JSON does not know replaced by None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Left-aligned columns, two spaces apart; the last column is as long as it likes."""
    cells = [list(head), *[[format_value(v) for v in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_tree(tree: Mapping[str, Any], *, indent: int = 0) -> None:
    """``key  value`` lines, nested mappings indented under their key; empty ones are left out."""
    pad = "  " * indent
    width = max((len(key) for key, value in tree.items() if not isinstance(value, Mapping)), default=0)
    for key, value in tree.items():
        if not isinstance(value, Mapping):
            print(f"{pad}{key.ljust(width)}  {format_value(value)}")
        elif value:
            print(f"{pad}{key}:")
            print_tree(value, indent=indent + 1)


def format_value(value: object) -> str:
    """A cell: floats to four significant digits, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def print_heldout(title: str, heldout: Mapping[str, Mapping[str, Any]]) -> None:
    """Scores by environment and mode, e.g. ``after: toolgym/python-v0: sampled 0.912 [0.880, 0.937] of 400``."""
    for env_id, modes in heldout.items():
        scores = []
        for mode, score in modes.items():
            low, high = score["ci95"]
            scores.append(f"{mode} {score['mean']:.3f} [{low:.3f}, {high:.3f}] of {score['n']}")
        print(f"{title}: {env_id}: {', '.join(scores)}")
