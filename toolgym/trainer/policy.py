"""Where a policy comes from: made from nothing (``tiny``), or a folder of a pretrained transformers model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from toolgym.agents.chat import ChatFormat
from toolgym.agents.tiny import END, PAD, TINY_SPECIALS, tiny_template
from toolgym.config import Config, component
from toolgym.engines.weights import own_memory
from toolgym.errors import ConfigError
from toolgym.trainer.tiny.model import TinyModelConfig, build
from toolgym.trainer.tiny.tokenizer import train_tokenizer
from toolgym.trainer.tiny.warmup import WarmupConfig


class TinyPolicyConfig(Config):
    """A policy of about 180k parameters with its own tokenizer, made from the demonstrations' text."""

    type: Literal["tiny"] = "tiny"
    vocab_size: int = 690
    model: TinyModelConfig = Field(default_factory=TinyModelConfig)
    warmup: WarmupConfig = Field(default_factory=WarmupConfig)


class PretrainedPolicyConfig(Config):
    """A folder with config.json, safetensors and a tokenizer that has a chat template."""

    type: Literal["pretrained"] = "pretrained"
    path: str
    dtype: Literal["float32", "bfloat16"] = "float32"


PolicyConfig = component(TinyPolicyConfig, PretrainedPolicyConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Model, tokenizer and chat format of one policy."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    chat: ChatFormat

    @property
    def pad(self) -> int:
        """The id to pad with; whatever it is, padding is never looked at."""
        return pad_id(self.tokenizer)

    def save(self, folder: Path) -> None:
        """Write a folder that transformers, the engine and `load` can open."""
        folder.mkdir(parents=True, exist_ok=True)
        disable_progress_bar()  # of transformers, over one file
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def pad_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The tokenizer's padding id; 0 where it has none (padding is never looked at)."""
    found = tokenizer.pad_token_id
    return found if isinstance(found, int) else 0


def make_tiny(config: TinyPolicyConfig, *, texts: Iterable[str], seed: int) -> Policy:
    """Tokenizer trained on ``texts`` and a fresh model; the same for the same texts and seed."""
    tokenizer = train_tokenizer(
        texts,
        vocab_size=config.vocab_size,
        specials=TINY_SPECIALS,
        end=END,
        pad=PAD,
        chat_template=tiny_template(),
    )
    chat = ChatFormat(tokenizer)
    model = build(config.model, vocab_size=len(tokenizer), seed=seed, eos=chat.end_of_turn, pad=pad_id(tokenizer))
    return Policy(model=model, tokenizer=tokenizer, chat=chat)


def check_folder(path: Path) -> None:
    """Raise ConfigError unless a model may lie there."""
    if not (path / "config.json").is_file():
        raise ConfigError(f"{path} is no model folder: it has no config.json. Give a folder saved by save_pretrained")


def load(folder: str | Path, *, dtype: str = "float32") -> Policy:
    """Open a saved policy; nothing is downloaded.

    Raises:  ConfigError: no such folder, not a model, or a tokenizer without chat template.
    """
    path = Path(folder)
    tokenizer = load_tokenizer(path)
    disable_progress_bar()
    with _model_errors(path):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), local_files_only=True)
    own_memory(model)
    return Policy(model=model, tokenizer=tokenizer, chat=ChatFormat(tokenizer))


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a saved policy. Raises ConfigError: no such folder, not a model."""
    path = Path(folder)
    check_folder(path)
    # AutoTokenizer would go by the model's type and rebuild, say, Qwen's own splitting around our vocabulary.
    kind = PreTrainedTokenizerFast if (path / "tokenizer.json").is_file() else AutoTokenizer
    with _model_errors(path):
        return kind.from_pretrained(path, local_files_only=True)


@contextmanager
def _model_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(f"{path} cannot be loaded as a model: {str(error).splitlines()[0][:200]}") from error
