"""Text to token ids such that a text can never become a control token.

A control token is an added token of the tokenizer: the role markers, the end of a turn, but also markup such as
``<tool_call>``, which many tokenizers add without calling it special (``split_special_tokens`` lets those through).
Two ways are open, and both end in the same tokens:

- `ControlEncoder.encode_text` takes text that nobody vouches for. It uses a copy of the tokenizer without added tokens.
- `ControlEncoder.encode_rendered` takes the output of a chat template, in which every text was first passed through
  `ControlEncoder.guard`. There the template's own control tokens become control tokens and the texts' do not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from toolgym.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CACHED_TEXTS = 8192  # at most this many texts …
CACHED_LENGTH = 400  # … of at most this many characters: a few MB, and long texts seldom come twice


class ControlEncoder:
    """The one place where text becomes token ids and back.

    Attributes:
        control: every control token's text and id.
        control_ids: the ids alone.
        pattern: a regular expression that finds control tokens, the longest first.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError(
                f"{type(tokenizer).__name__} is not a fast tokenizer (tokenizer.json), a chat format needs one"
            )
        added = {index: token for index, token in backend.get_added_tokens_decoder().items() if _is_control(token)}
        self.control: dict[str, int] = {token.content: index for index, token in added.items()}
        if not self.control:
            raise ConfigError("the tokenizer has no control tokens: a chat format needs one that ends a turn")
        if short := [text for text in self.control if len(text) < 2]:
            raise ConfigError(f"the tokenizer's control token {short[0]!r} is a single character: text cannot avoid it")
        self.control_ids: frozenset[int] = frozenset(self.control.values())
        longest_first = sorted(self.control, key=len, reverse=True)
        self.pattern: re.Pattern[str] = re.compile("|".join(map(re.escape, longest_first)))
        self._prefixes = frozenset(text[:end] for text in longest_first for end in range(1, len(text)))
        self._longest_prefix = len(longest_first[0]) - 1
        # Copies: calls of the tokenizer elsewhere leave truncation and the handling of special tokens changed behind.
        self._stock, self._text = _copies(backend)
        self._cache: dict[str, list[int]] = {}

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text, none of them a control token. The caller must not change the list (it is cached)."""
        ids = self._cache.get(text)
        if ids is None:
            ids = self._encode(text)
            if len(text) <= CACHED_LENGTH:
                if len(self._cache) >= CACHED_TEXTS:
                    self._cache.clear()
                self._cache[text] = ids
        return ids

    def encode_rendered(self, rendered: str, guard: str) -> list[int]:
        """Token ids of a template's output whose texts were guarded: markup becomes control tokens, text does not."""
        ids: list[int] = []
        for is_control, piece in self.split(rendered):
            if is_control:
                ids.append(self.control[piece])
            else:
                ids += self._encode(piece.replace(guard, ""))
        return ids

    def encode_stock(self, rendered: str) -> list[int]:
        """What the unchanged tokenizer makes of a template's output; only for proofs, it lets texts inject tokens."""
        return self._stock.encode(rendered, add_special_tokens=False).ids

    def split(self, rendered: str) -> Iterable[tuple[bool, str]]:
        """Cut a template's output into control tokens (True) and the runs of text between them (False, never empty)."""
        at = 0
        for match in self.pattern.finditer(rendered):
            if match.start() > at:
                yield False, rendered[at : match.start()]
            yield True, match.group()
            at = match.end()
        if at < len(rendered):
            yield False, rendered[at:]

    def guard(self, text: str, guard: str) -> str:
        """Put ``guard`` into every control token that the text spells, and behind the beginning of one at its end."""
        while self.pattern.search(text):  # breaking one token may leave a shorter one that it contained
            text = self.pattern.sub(lambda match: match[0][0] + guard + match[0][1:], text)
        longest = min(self._longest_prefix, len(text))
        return text + guard if any(text[-size:] in self._prefixes for size in range(1, longest + 1)) else text

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, control tokens included."""
        return self._stock.decode(ids, skip_special_tokens=False)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._text.encode(text, add_special_tokens=False).ids
        if self.control_ids.isdisjoint(ids):
            return ids
        # A vocabulary may hold a control token's text as an ordinary entry. Then spell the text out.
        spelled = (self._text.encode(char, add_special_tokens=False).ids for char in text)
        return [index for char_ids in spelled for index in char_ids if index not in self.control_ids]


def new_guard(texts: Iterable[str]) -> str:
    """A string of letters and digits that occurs in none of the texts and that no template filter changes."""
    texts = list(texts)
    # q stands only at its beginning: so no text around an inserted guard can form a second one with a part of it
    guards = (f"q7zg{n}x" for n in range(len(texts) + 1))
    return next(guard for guard in guards if not any(guard in text for text in texts))


def _is_control(token: Any) -> bool:
    # Tokenizers add runs of white space as ordinary tokens (Phi, GPT-NeoX, Gemma): those are text.
    return bool(token.special or token.content.strip())


def _copies(backend: Any) -> tuple[Any, Any]:
    """The tokenizer as it was saved, and one to which control tokens are text like any other."""
    state = json.loads(backend.to_str())
    state |= {"truncation": None, "padding": None}
    stock = type(backend).from_str(json.dumps(state))
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["special"] and not t["content"].strip()]
    state["post_processor"] = None  # adds special tokens, and may name ones that are gone
    return stock, type(backend).from_str(json.dumps(state))
