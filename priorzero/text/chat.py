"""Chats as tokens: a row's prompt, and the text that carries a running chat on without tokenising it again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from priorzero.types import Message, PromptRow


class ChatTemplateError(ValueError):
    """The tokenizer's chat template cannot do what is asked of it."""


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of ``text`` alone, nothing added at either end."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def row_text(tokenizer: Any, row: PromptRow) -> str:
    """The prompt of a row as text: its chat, the start of the model's message, the answer prefix.

    Raises:
        ChatTemplateError: the tokenizer has no chat template.
    """
    return _render(tokenizer, row.messages, reply=True) + row.answer_prefix


def row_tokens(tokenizer: Any, row: PromptRow) -> list[int]:
    """Token ids of ``row_text``. Same errors."""
    return encode(tokenizer, row_text(tokenizer, row))


def reply_text(tokenizer: Any, closing: str, content: str) -> str:
    """What follows a finished message of the model so that the user says ``content`` and the model may go on.

    It is the difference between two renderings of the template, from the end of the model's message on.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        closing: text of the token with which the model ended its message.
        content: what the user says.

    Raises:
        ChatTemplateError: there is no template, or it changes earlier messages when one is added.
    """
    before = [Message("user", "a"), Message("assistant", "b")]
    start = _render(tokenizer, before, reply=False)
    whole = _render(tokenizer, [*before, Message("user", content)], reply=True)
    if not whole.startswith(start):
        raise ChatTemplateError(
            "this tokenizer's chat template rewrites earlier messages when one is added, so a dialogue cannot be one "
            "sequence of tokens: set agent.mode=step, where each turn has its own prompt"
        )
    at = start.rfind(closing)
    return (start[at + len(closing) :] if closing and at >= 0 else "") + whole[len(start) :]


def _render(tokenizer: Any, messages: Sequence[Message], reply: bool) -> str:
    if not tokenizer.chat_template:
        raise ChatTemplateError("the tokenizer has no chat template: choose an instruct model")
    chat = [{"role": message.role, "content": message.content} for message in messages]
    return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=reply)
