"""What the error messages promise."""

from toolgym.errors import LISTED, nearest


def test_nearest_names_the_nearest_and_lists_the_others():
    assert nearest("quikstart", ["quickstart", "lookup"], what="recipe") == (
        "unknown recipe 'quikstart'; did you mean 'quickstart'? known: lookup, quickstart"
    )
    assert nearest("zzz", ["a"], what="run") == "unknown run 'zzz'; known: a"
    assert nearest("x", [], what="run") == "unknown run 'x'; known: (none)"


def test_nearest_of_many_names_only_the_few_near_it():
    names = [f"method_{i}" for i in range(LISTED + 1)]
    assert nearest("method_4", [*names, "other"], what="method").startswith("unknown method 'method_4'; did you mean")
    assert len(nearest("method_4x", names, what="method").split(",")) <= 5
    assert nearest("zzz", names, what="method") == f"unknown method 'zzz'; {LISTED + 1} are known"
