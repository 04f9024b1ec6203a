import pytest
from hypothesis import given
from hypothesis import strategies as st

from priorzero.rl.text_match import last_answer, normalise_qa, qa_match, similarity, squeeze


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The  Beatles!", "beatles"),
        ("An apple, a day", "apple day"),
        ("theatre", "theatre"),  # an article is a whole word
        ("U.S.A.", "usa"),
        (" ... ", ""),
    ],
)
def test_normalisation_of_answers(text, wanted):
    assert normalise_qa(text) == wanted


def test_last_answer():
    assert last_answer("<answer>a</answer> <answer>\n b </answer>") == "b"
    assert last_answer("<answer>never closed") is None
    assert last_answer("<answer></answer>") == ""


def test_qa_match():
    assert qa_match("the Eiffel Tower.", ["Louvre", "eiffel tower"])
    assert not qa_match("Eiffel", ["Louvre", "eiffel tower"])
    assert not qa_match("Eiffel", [])


def test_similarity_by_hand():
    assert similarity("go north", "GO  north") == 1.0
    assert similarity("abc", "xyz") == 0.0
    assert similarity("abcd", "abxx") == pytest.approx(2 * 2 / 8)


@given(st.text(max_size=30))
def test_squeeze_and_similarity_of_any_text(text):
    assert squeeze(squeeze(text)) == squeeze(text)
    assert similarity(text, text) == 1.0
