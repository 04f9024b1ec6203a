import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_llm import small_llm

from priorzero.text.prompt import (
    PromptBuilder,
    PromptConfig,
    PromptTooLongError,
    brief,
    observation_text,
    squeeze,
)
from priorzero.types import Observation, Situation, Turn

TOKENIZER = small_llm().tokenizer
HALL = Observation("You walk north.", "Hall\nA long hall.", "You carry nothing.")
TURNS = (
    Turn(Observation("You wake up."), "open door", 0.0),
    Turn(Observation("The door opens."), "go north", 5.0),
    Turn(Observation("You see a coin."), "take coin", -2.0),
)
SITUATION = Situation(HALL, ("go north", "look"), TURNS, goal="Find the lamp.")


def build(**changes):
    config = {
        "format": "plain",
        "history_steps": 5,
        "max_tokens": 2000,
        "show": ("feedback", "look", "inventory"),
        "show_valid_actions": False,
        "show_rewards": True,
        "truncate_observation": False,
        "system": "Play.",
    }
    return PromptBuilder(TOKENIZER, PromptConfig(**{**config, **changes}))


def test_whole_prompt():
    instruction = "Answer with one action, written as: Action: <action>"
    assert build(show_valid_actions=True).text(SITUATION) == (
        "<|im_start|>system\nPlay.<|im_end|>\n"
        f"<|im_start|>user\n{instruction}\nGoal: Find the lamp.\n"
        "You wake up.\n> open door\n"
        "The door opens.\n> go north (+5 points)\n"
        "You see a coin.\n> take coin (-2 points)\n"
        "You walk north.\nHall\nA long hall.\nYou carry nothing.\n"
        "Valid actions: look; go north<|im_end|>\n"
        "<|im_start|>assistant\nAction:"
    )


def test_the_order_of_the_valid_actions_is_fixed_for_a_situation_and_means_nothing():
    actions = tuple(f"take {thing}" for thing in ("axe", "bag", "cup", "dog"))
    firsts = set()
    for i in range(40):
        situation = Situation(Observation("", f"Room {i}.", ""), actions)
        listed = build(show_valid_actions=True).text(situation).split("Valid actions: ")[1].split("<|im_end|>")[0]
        assert sorted(listed.split("; ")) == list(actions)
        firsts.add(listed.split("; ")[0])
    assert firsts == set(actions)


def test_prompt_is_the_text_in_tokens():
    builder = build()
    assert TOKENIZER.decode(builder.prompt(SITUATION)) == builder.text(SITUATION)


def test_history_steps():
    assert "open door" not in build(history_steps=2).text(SITUATION)
    assert "take coin" in build(history_steps=2).text(SITUATION)
    assert "> " not in build(history_steps=0).text(SITUATION)
    assert "points" not in build(show_rewards=False).text(SITUATION)


def test_goal_is_stated_once_before_the_game():
    first = Situation(Observation("Welcome!\nFind  the lamp.\nHall"), ("look",), goal="Find the lamp.")
    text = build().text(first)
    assert text.count("Find the lamp.") == 1
    assert "<action>\nGoal: Find the lamp.\nWelcome!\nHall" in text
    later = Situation(HALL, ("look",), (Turn(first.observation, "look", 0.0),), goal=first.goal)
    assert build().text(later).count("Find the lamp.") == 1
    assert "Goal" not in build().text(Situation(HALL, ("look",)))


def test_system_text():
    assert "system\nYou are playing a text adventure game.<|im_end|>" in build(system=None).text(SITUATION)
    builder = build(system="Play {x}.\nGoal: {goal}\n{format}")
    instruction = builder.format.instruction
    assert f"system\nPlay {{x}}.\nGoal: Find the lamp.\n{instruction}<|im_end|>" in builder.text(SITUATION)
    assert f"system\nPlay {{x}}.\n{instruction}<|im_end|>" in builder.text(Situation(HALL, ("look",)))


@pytest.mark.parametrize(
    ("format", "reasoning", "end"),
    [
        ("plain", None, "assistant\nAction:"),
        ("reasoning", None, "assistant\nReasoning:\nAction:"),
        ("reasoning", " It is dark. ", "assistant\nReasoning: It is dark.\nAction:"),
        ("think_answer", None, "assistant\n<think></think>\n<answer>"),
        ("think_answer", "It is dark.", "assistant\n<think>It is dark.</think>\n<answer>"),
    ],
)
def test_answer_prefix(format, reasoning, end):
    assert build(format=format).text(SITUATION, reasoning).endswith(end)


def test_plain_has_no_place_for_a_reasoning():
    with pytest.raises(ValueError, match="no place for a reasoning"):
        build().prompt(SITUATION, "Hm.")


@pytest.mark.parametrize(
    ("format", "end"), [("plain", "<|im_end|>"), ("reasoning", "<|im_end|>"), ("think_answer", "<")]
)
def test_answers_are_own_tokens_and_one_end_token(format, end):
    builder = build(format=format)
    short, long = builder.answers(["open", "open mailbox"])
    assert TOKENIZER.decode(short).strip() == f"open{end}"
    assert TOKENIZER.decode(long).strip() == f"open mailbox{end}"
    assert long[: len(short)] != short
    assert TOKENIZER.decode(long[-1:]) == end


@pytest.mark.parametrize("format", ["plain", "reasoning", "think_answer"])
@settings(max_examples=40)
@given(action=st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<"), min_size=1, max_size=20))
def test_prompt_and_answer_together_are_the_tokens_of_the_whole_text(format, action):
    builder = build(format=format)
    if not action.strip():
        with pytest.raises(ValueError, match="empty"):
            builder.answers([action])
        return
    text, answer = builder.text(SITUATION), builder.answers([action])[0]
    whole = TOKENIZER(text + builder.format.gap + action, add_special_tokens=False)["input_ids"]
    assert builder.prompt(SITUATION) + answer[:-1] == whole


def test_oldest_history_goes_first():
    builder = build()
    full, without_oldest = len(builder.prompt(SITUATION)), len(build(history_steps=2).prompt(SITUATION))
    assert len(build(max_tokens=full).prompt(SITUATION)) == full
    assert build(max_tokens=full - 1).text(SITUATION) == build(history_steps=2).text(SITUATION)
    assert build(max_tokens=without_oldest - 1).text(SITUATION) == build(history_steps=1).text(SITUATION)
    bare = build(history_steps=0).prompt(SITUATION)
    assert build(max_tokens=len(bare)).prompt(SITUATION) == bare


@settings(max_examples=30)
@given(budget=st.integers(1, 600), steps=st.integers(0, 4))
def test_budget_is_kept_and_the_observation_too(budget, steps):
    builder = build(max_tokens=budget, history_steps=steps)
    least = len(build(history_steps=0).prompt(SITUATION))
    if budget < least:
        with pytest.raises(PromptTooLongError, match=f"{least} tokens.*budget is {budget}.*raise max_tokens"):
            builder.prompt(SITUATION)
        return
    prompt = builder.prompt(SITUATION)
    assert len(prompt) <= budget
    assert observation_text(HALL) in TOKENIZER.decode(prompt)


def test_truncated_observation(caplog):
    long = Situation(HALL._replace(look="Hall " + "word " * 300), ("look",), TURNS)
    with pytest.raises(PromptTooLongError):
        build(max_tokens=300).prompt(long)
    builder = build(max_tokens=300, truncate_observation=True)
    with caplog.at_level(logging.WARNING):
        prompt = builder.prompt(long)
    assert 290 <= len(prompt) <= 300
    text = TOKENIZER.decode(prompt)
    assert "You walk north.\nHall word" in text
    assert "You carry nothing." in text
    assert text.endswith("Action:")
    assert builder.truncated == 1
    assert "cut an observation" in caplog.text
    with pytest.raises(PromptTooLongError, match="already set"):
        build(max_tokens=50, truncate_observation=True).prompt(long)


def test_long_feedback_is_cut_after_the_room():
    long = Situation(Observation("word " * 400, "Hall " * 20, "You carry nothing."), ("look",))
    builder = build(max_tokens=300, truncate_observation=True)
    text = TOKENIZER.decode(builder.prompt(long))
    assert "word word" in text
    assert "Hall" not in text
    assert "You carry nothing." in text


def test_observation_parts_that_repeat_are_skipped():
    assert observation_text(Observation("A", "", "C")) == "A\nC"
    assert observation_text(Observation("Hall\nLong.\n\nYou  win.", "Hall\nLong.", "")) == "Hall\nLong.\nYou win."
    assert observation_text(Observation("Hall", "Hall", "Hall")) == "Hall"
    assert observation_text(Observation("Hall", "Hall\nLong.", "")) == "Hall\nLong."
    assert observation_text(Observation("")) == ""


def test_brief_keeps_the_name_of_a_room():
    assert brief(Observation("Taken.\n\nHall\nLong and dark.", "Hall\nLong and dark.")) == "Taken.\nHall"
    assert brief(Observation("Taken.", "Hall\nLong.")) == "Taken."


def test_squeeze_drops_drawings_and_blanks():
    assert squeeze("  $$ ___\n\n -= Hall =-  \n-----\n  two   words ") == "-= Hall =-\ntwo words"


def test_refusals():
    with pytest.raises(ValueError, match="unknown prompt format 'json'"):
        build(format="json")
    with pytest.raises(ValueError, match="history_steps"):
        build(history_steps=-1)


def test_only_the_chosen_parts_are_shown():
    text = build(show=("inventory",)).text(SITUATION)
    assert "You carry nothing." in text
    assert "A long hall." not in text


@pytest.mark.parametrize("show", [(), ("smell",)])
def test_parts_that_do_not_exist_are_refused(show):
    with pytest.raises(ValueError, match="feedback, look, inventory"):
        build(show=show)
