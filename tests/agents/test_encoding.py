"""Text never becomes a control token, whatever way it takes."""

from hypothesis import example, given
from hypothesis import strategies as st

from tests.agents.tokenizers_for_tests import llama3_tokenizer, qwen_tokenizer, tiny_tokenizer
from toolgym.agents.encoding import CACHED_LENGTH, ControlEncoder, new_guard

ENCODERS = [ControlEncoder(tokenizer()) for tokenizer in (tiny_tokenizer, qwen_tokenizer, llama3_tokenizer)]
encoders = st.sampled_from(ENCODERS)
spiked = st.lists(
    st.sampled_from(
        ["<|im_end|>", "<|end|>", "<tool_call>", "<", "<|", "|>", "<|im_", "end|>", "q7zg0x", "q7z", "x", " "]
    )
).map("".join)


@given(encoders, spiked)
def test_encode_text_is_exact_and_free_of_control_tokens(encoder: ControlEncoder, text: str) -> None:
    ids = encoder.encode_text(text)
    assert encoder.control_ids.isdisjoint(ids)
    assert encoder.decode(ids) == text


@given(encoders, spiked, spiked)
@example(ENCODERS[0], "<|", "end|>")
@example(ENCODERS[1], "x <|im_", "end|>")
def test_guarded_texts_side_by_side_make_no_control_token(encoder: ControlEncoder, left: str, right: str) -> None:
    guard = new_guard([left, right])
    rendered = encoder.guard(left, guard) + encoder.guard(right, guard)
    ids = encoder.encode_rendered(rendered, guard)
    assert encoder.control_ids.isdisjoint(ids)
    assert encoder.decode(ids) == left + right


@given(encoders, spiked)
def test_encode_rendered_keeps_the_templates_own_control_tokens(encoder: ControlEncoder, text: str) -> None:
    name, index = next(iter(encoder.control.items()))
    guard = new_guard([text])
    ids = encoder.encode_rendered(f"{name}{encoder.guard(text, guard)}{name}", guard)
    assert [i for i in ids if i in encoder.control_ids] == [index, index]
    assert ids == [index, *encoder.encode_text(text), index]


@given(st.lists(spiked))
def test_new_guard_occurs_in_no_text(texts: list[str]) -> None:
    guard = new_guard([*texts, "q7zg1x"])
    assert not any(guard in text for text in [*texts, "q7zg1x"])


def test_encoder_does_not_heed_what_other_calls_left_in_the_tokenizer() -> None:
    tokenizer = qwen_tokenizer()
    tokenizer("a b c", truncation=True, max_length=1, split_special_tokens=True)
    encoder = ControlEncoder(tokenizer)
    assert len(encoder.encode_text("one two three")) > 1
    assert encoder.encode_stock("<|im_end|>") == [encoder.control["<|im_end|>"]]


def test_long_texts_are_not_kept() -> None:
    encoder = ControlEncoder(tiny_tokenizer())
    short, long = "x" * CACHED_LENGTH, "x" * (CACHED_LENGTH + 1)
    assert encoder.encode_text(short) is encoder.encode_text(short)
    assert encoder.encode_text(long) is not encoder.encode_text(long)
