"""The catalogue reads a card from a docstring, refuses an incomplete one and answers a wrong name with the nearest."""

import pytest

from toolgym.algorithms import registry
from toolgym.errors import ConfigError


@pytest.fixture
def empty(monkeypatch):
    monkeypatch.setattr(registry, "_CARDS", {})


def documented(x, *, eps=0.5):
    """Add a
    constant.

        y = x + eps
          + 0

    Args:    x: float.
    Source:  A paper (arXiv:1),
             eq. 2.
    Differs: not at all.
    """
    return x + eps


def test_card_is_read_from_docstring_and_signature(empty):
    assert registry.card(family="fit", certainty="derived", parts=("other",))(documented) is documented
    card = registry._CARDS["documented"]
    assert card.summary == "Add a constant."
    assert card.equation == "y = x + eps\n  + 0"
    assert card.source == "A paper (arXiv:1), eq. 2."
    assert card.differs == "not at all."
    assert card.to_dict() == {
        "name": "documented",
        "family": "fit",
        "summary": "Add a constant.",
        "equation": "y = x + eps\n  + 0",
        "source": "A paper (arXiv:1), eq. 2.",
        "certainty": "derived",
        "differs": "not at all.",
        "parts": ["other"],
        "defaults": {"eps": 0.5},
        "function": f"{__name__}.documented",
    }


@pytest.mark.parametrize(
    "doc", [None, "Only a summary.", "No source.\n\n    y = x\n", "No equation.\n\nSource: a paper\n"]
)
def test_card_refuses_an_incomplete_docstring(empty, doc):
    def function():
        pass

    function.__doc__ = doc
    with pytest.raises(ConfigError, match="docstring needs"):
        registry.card(family="fit", certainty="certain")(function)


def test_card_refuses_a_second_function_of_the_same_name(empty):
    def other():
        pass

    other.__name__, other.__doc__, other.__module__ = "documented", documented.__doc__, "elsewhere"
    registry.card(family="fit", certainty="certain")(documented)
    with pytest.raises(ConfigError, match="two algorithms called 'documented'"):
        registry.card(family="fit", certainty="certain")(other)


def test_get_answers_a_wrong_name_with_the_nearest(empty, monkeypatch):
    monkeypatch.setattr(registry, "_load", lambda: None)
    registry.card(family="fit", certainty="certain")(documented)
    assert registry.get("documented").name == "documented"
    with pytest.raises(ConfigError, match="did you mean 'documented'"):
        registry.get("documentd")
    assert [c.name for c in registry.cards("fit")] == ["documented"]
    assert registry.cards("kl") == ()
