"""The tiny policy's own chat format: short enough for an episode of about a hundred tokens.

Stock templates spend hundreds of tokens on explaining tools; a policy trained from nothing learns them from
demonstrations, so the system turn lists their names alone. Tool calls have the canonical form.
"""

from importlib.resources import files

PAD = "<pad>"
END = "<|end|>"
TINY_SPECIALS: tuple[str, ...] = (
    PAD,
    END,
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
    "<tool_call>",
    "</tool_call>",
)


def tiny_template() -> str:
    """The tiny policy's jinja chat template. Its control tokens are `TINY_SPECIALS`; ``<|end|>`` ends each turn."""
    return (files("toolgym.agents") / "templates" / "tiny.jinja").read_text(encoding="utf-8")
