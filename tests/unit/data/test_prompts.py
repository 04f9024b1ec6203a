import builtins
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from priorzero.data.prompts import PromptFileError, read_prompts, write_prompts
from priorzero.types import Message, PromptRow

pytest.importorskip("pyarrow", reason="the extra 'parquet' is not installed")

ROW = PromptRow(
    messages=(Message("system", "Play."), Message("user", 'Where\u2028to?\n"é"')),
    answer="go north",
    valid_actions=("go north", "wait"),
    data_source="zork1",
    state_id="s1",
    group_id="g1",
    answer_prefix="Action:",
    extra={"steps": 3, "deep": {"list": [1.5, None, "x"]}},
)
plain = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(plain | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=5)
texts = st.text(st.characters(codec="utf-8"))
rows = st.builds(
    PromptRow,
    messages=st.lists(st.builds(Message, st.sampled_from(("system", "user")), texts), min_size=1).map(tuple),
    answer=texts,
    valid_actions=st.lists(texts).map(tuple),
    data_source=texts,
    answer_prefix=texts,
    extra=st.dictionaries(texts, values),
)


def write(folder: Path, *lines: object, name: str = "p.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_rows_come_back_equal(suffix, tmp_path):
    path = tmp_path / f"p.{suffix}"
    write_prompts(path, [ROW, PromptRow((Message("user", "bare"),))])
    assert read_prompts(path, {}) == [ROW, PromptRow((Message("user", "bare"),))]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@settings(max_examples=40)
@given(written=st.lists(rows, max_size=3))
def test_any_rows_come_back_equal(suffix, written):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"p.{suffix}")
        write_prompts(path, written)
        assert read_prompts(path, {}) == written


def test_a_data_set_as_hubs_have_it(tmp_path):
    path = write(
        tmp_path,
        {"prompt": "2 + 2?", "answer": 4, "ability": "sums"},
        "",
        {"prompt": [{"role": "user", "content": "Hi", "name": "ann"}], "answer": ["a", "b"], "data_source": None},
    )
    first, second = read_prompts(path, {})
    assert first == PromptRow((Message("user", "2 + 2?"),), answer="4", extra={"ability": "sums"})
    assert second == PromptRow((Message("user", "Hi"),), answer="a", extra={"answers": ["a", "b"]})


def test_columns_of_other_names(tmp_path):
    path = write(tmp_path, {"question": "Q", "reward_model": {"ground_truth": {"target": ["x"]}}, "answer": "not it"})
    (row,) = read_prompts(path, {"prompt": "question", "answer": "reward_model.ground_truth.target"})
    assert row.messages == (Message("user", "Q"),)
    assert row.answer == "x"
    assert row.extra == {"answers": ["x"], "reward_model": {"ground_truth": {"target": ["x"]}}}


def test_a_folder_is_read_in_order_of_names(tmp_path):
    write(tmp_path, {"prompt": "b"}, name="b.jsonl")
    write(tmp_path, {"prompt": "a"}, name="a.jsonl")
    write(tmp_path, "no prompts", name="README.md")
    assert [row.messages[0].content for row in read_prompts(tmp_path, {})] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", r"p.jsonl, line 2: is not JSON .*each line is one object"),
        ('["a"]', "line 2: is not a record but a list"),
        ({"question": "a"}, r"line 2: has no field 'prompt' nor 'messages' \(it has 'question'\).*columns.prompt"),
        ({"prompt": "a", "messages": []}, "line 2: has both a field 'prompt' and 'messages'"),
        ({"prompt": 3}, "line 2: the prompt must be a text or a list of messages, not 3"),
        ({"prompt": []}, "line 2: the prompt must be a text or a list"),
        ({"prompt": [{"role": "user"}]}, "line 2, message 1: must have 'role' and 'content'"),
        ({"prompt": [{"role": "tool", "content": "x"}]}, "message 1: the role is one of system, user, assistant"),
        ({"prompt": [{"role": "user", "content": ["x"]}]}, "message 1: the content must be text, not a list"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "line 2: the last message is the assistant's"),
        ({"prompt": "a", "answer": {"x": 1}}, "line 2: answer is a dict, it must be text"),
        ({"prompt": "a", "answer": True}, "line 2: answer is a bool"),
        ({"prompt": "a", "valid_actions": "wait"}, "line 2: valid_actions must be a list of texts, not 'wait'"),
        ({"prompt": "a", "extra": [1]}, "line 2: 'extra' must be an object"),
        ({"prompt": "a", "extra": {"level": 1}, "level": 2}, "line 2: 'extra' must be an object without the names"),
    ],
)
def test_a_bad_line_is_named(line, message, tmp_path):
    with pytest.raises(PromptFileError, match=message):
        read_prompts(write(tmp_path, {"prompt": "fine"}, line), {})


def test_a_missing_column_is_named(tmp_path):
    with pytest.raises(PromptFileError, match=r"line 1: has no column 'a.b', which is to be its answer"):
        read_prompts(write(tmp_path, {"prompt": "x", "a": "text"}), {"answer": "a.b"})


def test_bad_files(tmp_path):
    with pytest.raises(PromptFileError, match="no such file"):
        read_prompts(tmp_path / "none.jsonl", {})
    with pytest.raises(PromptFileError, match=r"without \.jsonl and \.parquet files"):
        read_prompts(tmp_path, {})
    with pytest.raises(PromptFileError, match="convert it"):
        read_prompts(write(tmp_path, "prompt", name="p.csv"), {})
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(PromptFileError, match="is not UTF-8"):
        read_prompts(tmp_path / "latin.jsonl", {})
    with pytest.raises(PromptFileError, match="is not a parquet file"):
        read_prompts(write(tmp_path, "{}", name="p.parquet"), {})


def test_extra_must_be_plain(tmp_path):
    with pytest.raises(PromptFileError, match="row 1: extra must hold plain values only"):
        write_prompts(tmp_path / "p.jsonl", [PromptRow((Message("user", "x"),), extra={"path": tmp_path})])


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    path = tmp_path / "p.parquet"
    write_prompts(path, [ROW])
    real = builtins.__import__

    def missing(name, *rest, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(PromptFileError, match=r"pip install 'priorzero\[parquet\]'"):
        read_prompts(path, {})
