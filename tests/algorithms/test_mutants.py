"""The mutation check itself: enough mutants a function, each valid Python; every equivalent on the page exists; and a
sample of them is noticed.
"""

import ast
import random
import subprocess
import sys
from collections import Counter

import pytest

from . import mutants as mutation

SAMPLED = ("kl", "ratios", "aggregation", "entropy")


# Functions with fewer than five mutants: they have no more places.
FEW = {
    "distillation.EntropyGate.length": 4,
    "feedback.second_turn_prompt": 4,
    "merging_gcwm._eigh": 3,
    "riskpo.QuantileTracker.__init__": 4,
}


@pytest.mark.parametrize("module", mutation.all_modules())
def test_mutants_are_valid_different_and_at_least_five_a_function(module):
    found = mutation.mutants(module)
    source = (mutation.PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    original = "\n".join(ast.unparse(statement) for statement in ast.parse(source).body)
    for mutant in found:
        compile(mutant.source, mutant.label, "exec")
        assert mutant.source != original, mutant.label
    assert len({m.source for m in found}) == len(found)
    count = Counter(m.key[0] for m in found)
    functions = [f"{module}.{name}" for _, name, _ in mutation.functions(ast.parse(source))]
    assert {f: count[f] for f in functions if count[f] < 5} == {f: n for f, n in FEW.items() if f in functions}


def test_mutants_on_the_page_exist():
    listed = mutation.equivalents()
    modules = {function.split(".")[0] for function, _ in listed}
    assert listed <= {m.key for module in modules for m in mutation.mutants(module)}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_mutants_sample_is_killed():
    pool = [m for module in SAMPLED for m in mutation.mutants(module) if m.key not in mutation.equivalents()]
    chosen = random.Random(1).sample(pool, 3)
    labels = [part for m in chosen for part in ("--label", m.label)]
    # A process of its own: what this one has imported cannot be replaced by a mutant.
    command = [sys.executable, "-m", "tests.algorithms.mutants", *labels]
    done = subprocess.run(command, cwd=mutation.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["3 mutants, 0 equivalent, 0 survive"]
