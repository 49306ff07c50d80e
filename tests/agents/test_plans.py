"""A compiled plan gives what the template gives, or is not used."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.agents.test_chat import CHATML, STOCK, stock_chat
from tests.agents.tokenizers_for_tests import qwen_tokenizer
from toolgym.agents.chat import ChatFormat
from toolgym.agents.plans import shape_of
from toolgym.types import Message

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["<|im_end|>", " <tool_call>\n", '"\\', "\n\nx", "x\n\n", "q7zg0x", "zqhole0end", "zqturn"]
)
messages = st.lists(
    st.builds(Message, role=st.sampled_from(["user", "tool"]), content=texts, name=st.none() | texts),
    min_size=1,
    max_size=3,
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", *STOCK])
@given(given_messages=messages)
def test_plans_give_the_increments_that_the_template_gives(name: str, given_messages: list[Message]) -> None:
    chat = stock_chat(name)
    slow = chat._renderer.encode(chat._renderer.increment(given_messages))
    assert chat.extend(given_messages) == slow


@pytest.mark.parametrize("name", ["tiny", *STOCK])
def test_every_stock_template_has_plans_for_its_increments(name: str) -> None:
    chat = stock_chat(name)
    plans = {tuple(role for role, _, _ in shape): plan for (shape, _), plan in chat._plans.items()}
    assert plans[("user",)] is not None
    assert plans[("tool",)] is not None


def test_a_template_that_no_plan_fits_is_run_each_time() -> None:
    chat = ChatFormat(qwen_tokenizer(), CHATML.replace("{{ m.content }}", "{{ m.content | replace('two', 'zwei') }}"))
    message = Message(role="user", content="one two")
    assert "one zwei" in chat.decode(chat.extend([message]))
    assert list(chat._plans.values()).count(None) == len(chat._plans)


def test_shape_of_leaves_what_templates_take_apart_to_the_template() -> None:
    good = Message(role="user", content="x")
    assert shape_of([good]) == (("user", False, False),)
    for odd in (Message(role="assistant", content="x"), Message(role="user"), Message(role="tool", content=" \n")):
        assert shape_of([good, odd]) is None
