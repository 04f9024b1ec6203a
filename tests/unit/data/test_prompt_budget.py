import logging
from dataclasses import replace

import pytest

from priorzero.data.prompt_budget import PromptBudget, fit_prompts
from priorzero.text.chat import row_text, row_tokens
from priorzero.text.prompt import PromptTooLongError
from priorzero.types import Message, PromptRow

WORDS = [f"word{i}" for i in range(200)]
LONG = PromptRow((Message("system", "Play."), Message("user", " ".join(WORDS))), answer_prefix="Action:")
SHORT = PromptRow((Message("user", "Hi"),))


@pytest.fixture(scope="module")
def tokenizer(llm_path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(llm_path)


def fit(rows, tokenizer, max_tokens, overlong):
    return fit_prompts(rows, tokenizer, PromptBudget(max_tokens=max_tokens, overlong=overlong))


def test_what_fits_is_left_alone(tokenizer):
    fitted = fit([SHORT, LONG], tokenizer, 10_000, "error")
    assert fitted.rows == (SHORT, LONG)
    assert fitted.tokens == (tuple(row_tokens(tokenizer, SHORT)), tuple(row_tokens(tokenizer, LONG)))
    assert (fitted.dropped, fitted.cut) == (0, 0)
    assert row_text(tokenizer, LONG).endswith("<|im_start|>assistant\nAction:")


@pytest.mark.parametrize("side", ["left", "right", "middle"])
def test_the_side_is_cut_and_the_template_stays(side, tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        fitted = fit([SHORT, LONG], tokenizer, 200, side)
    assert (fitted.dropped, fitted.cut) == (0, 1)
    assert "of 2 prompts 0 were left out and 1 cut to 200 tokens" in caplog.text
    content = fitted.rows[1].messages[1].content
    assert content.startswith("word0 ") == (side != "left")
    assert content.endswith("word199") == (side != "right")
    assert ("\n...\n" in content) == (side == "middle")
    assert 190 < len(fitted.tokens[1]) <= 200
    text = tokenizer.decode(fitted.tokens[1])
    assert text == row_text(tokenizer, fitted.rows[1])
    assert "Play." in text
    assert text.endswith("<|im_start|>assistant\nAction:")


def test_drop_and_error(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        fitted = fit([LONG, SHORT, LONG], tokenizer, 200, "drop")
    assert fitted.rows == (SHORT,)
    assert (fitted.dropped, fitted.cut) == (2, 0)
    assert "of 3 prompts 2 were left out" in caplog.text
    with pytest.raises(PromptTooLongError, match=r"prompt 2 of 2 has \d+ tokens and the budget is 200"):
        fit([SHORT, LONG], tokenizer, 200, "error")
    with pytest.raises(PromptTooLongError, match="all 2 prompts have more than 200 tokens"):
        fit([LONG, LONG], tokenizer, 200, "drop")


def test_a_template_that_is_too_long_by_itself(tokenizer):
    with pytest.raises(PromptTooLongError, match="even without its longest message"):
        fit([replace(LONG, answer_prefix="x " * 300)], tokenizer, 200, "left")


def test_bad_settings():
    with pytest.raises(ValueError, match="overlong is one of"):
        PromptBudget(max_tokens=5, overlong="top")
    with pytest.raises(ValueError, match="positive"):
        PromptBudget(max_tokens=0, overlong="drop")
