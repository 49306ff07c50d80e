"""The package's source files as syntax trees, for the tests that look at all of them."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "toolgym"


@cache
def modules() -> dict[str, tuple[Path, ast.Module]]:
    """Module name to file and tree; ``__init__`` files under their package's name."""
    result: dict[str, tuple[Path, ast.Module]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        result[name] = path, ast.parse(path.read_text(encoding="utf-8"))
    return result


def where(path: Path, node: ast.AST) -> str:
    """``toolgym/x.py:12``."""
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"
