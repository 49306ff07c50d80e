"""The tiny policy's tokenizer: a byte-level BPE trained on the demonstrations' own text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# Words, pairs of digits, and the rest are split before BPE, and no token carries a leading space: with " Zaka" and
# "Zaka" as two tokens, copying a name would be a mapping that has to be learned name by name.
PIECES = r"[A-Za-z]+|[0-9]{1,2}|[^A-Za-z0-9]+"


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, specials: Sequence[str], end: str, pad: str, chat_template: str
) -> PreTrainedTokenizerFast:
    """A tokenizer of at most ``vocab_size`` entries: 256 bytes, the specials, and merges; the same for the same texts.

    Args:  specials: control tokens; ``end`` (ends a turn) and ``pad`` are among them. chat_template: jinja.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=end, pad_token=pad, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = chat_template
    return tokenizer
