"""The mutation check itself: enough mutants a function, each valid Python; and a sample of them is noticed."""

import ast
import random
import re
import subprocess
import sys

import pytest

from . import mutants as mutation

SAMPLED = ("kl", "ratios", "aggregation", "entropy")


def equivalents() -> set[tuple[str, str]]:
    """Those that docs/algorithms/mutants.md lists, each with its reason."""
    text = (mutation.ROOT / "docs" / "algorithms" / "mutants.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `([^`]*)` ([^|]*[^| ]) +\|", text, re.MULTILINE))


def key(mutant: mutation.Mutant) -> tuple[str, str]:
    return f"{mutant.module}.{mutant.function}", mutant.what


@pytest.mark.parametrize("module", mutation.all_modules())
def test_mutants_are_valid_and_different(module):
    found = mutation.mutants(module)
    original = ast.unparse(ast.parse((mutation.PACKAGE / f"{module}.py").read_text(encoding="utf-8")))
    for mutant in found:
        compile(mutant.source, mutant.label, "exec")
        assert mutant.source != original, mutant.label
    assert len({m.source for m in found}) == len(found)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_mutants_sample_is_killed():
    pool = [m for module in SAMPLED for m in mutation.mutants(module) if key(m) not in equivalents()]
    chosen = random.Random(1).sample(pool, 3)
    labels = [part for m in chosen for part in ("--label", m.label)]
    # A process of its own: what this one has imported cannot be replaced by a mutant.
    command = [sys.executable, "-m", "tests.algorithms.mutants", *labels]
    done = subprocess.run(command, cwd=mutation.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["3 mutants, 0 survive"]
