from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from priorzero.envs.jericho import jericho_games
from priorzero.envs.stories import StoryError, check_story, find_story, story_fault


def make_story(version: int = 5, size: int = 400) -> bytearray:
    """The smallest file that passes: addresses inside, length and checksum right."""
    data = bytearray(size)
    data[0] = version
    for offset in (6, 8, 10, 12):
        data[offset : offset + 2] = (64).to_bytes(2, "big")
    data[64:] = bytes(i % 251 for i in range(size - 64))
    data[26:28] = (size // {3: 2, 4: 4, 5: 4, 8: 8}[version]).to_bytes(2, "big")
    data[28:30] = (sum(data[64:]) & 0xFFFF).to_bytes(2, "big")
    return data


@pytest.mark.parametrize("version", [3, 4, 5, 8])
def test_complete_story_passes(version: int):
    data = make_story(version)
    assert story_fault(bytes(data)) == ""
    assert story_fault(bytes(data) + bytes(100)) == ""  # story files are padded to disk blocks


def test_story_without_length_and_checksum_passes():
    data = make_story(3)
    data[26:30] = bytes(4)
    assert story_fault(bytes(data)) == ""


@pytest.mark.parametrize("version", [0, 1, 2, 6, 7, 9, 0x89, ord("F")])
def test_other_versions_are_refused(version: int):
    data = make_story()
    data[0] = version
    assert f"first byte is {version}" in story_fault(bytes(data))


def test_broken_files_are_refused_by_their_fault():
    data = make_story()
    assert "empty" in story_fault(b"")
    assert "less than the header" in story_fault(bytes(data[:63]))
    assert "cut off: it has 399 bytes and its header says 400" in story_fault(bytes(data[:399]))
    changed = data.copy()
    changed[200] ^= 1
    assert "checksum" in story_fault(bytes(changed))
    outside = data.copy()
    outside[8:10] = b"\xff\xff"
    assert "places the dictionary at 65535, outside" in story_fault(bytes(outside))


@given(st.binary(max_size=2000), st.sampled_from([None, 3, 4, 5, 8]))
def test_random_bytes_are_refused(data: bytes, version: int | None):
    if version is not None and data:
        data = bytes([version]) + data[1:]
    assert story_fault(data)


def test_story_is_found_by_name_or_path(tmp_path: Path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    (second / "game.z5").write_bytes(make_story())
    for story in ("game", "game.z5", str(second / "game.z5")):
        assert find_story(story, [first, second]) == second / "game.z5"
    games = jericho_games("game", [first, second], 100)
    assert not games.heldout
    assert (games.train[0].name, games.train[0].story) == ("game", str(second / "game.z5"))


def test_missing_story_says_where_it_was_looked_for(tmp_path: Path):
    with pytest.raises(StoryError) as error:
        find_story("zork1", [tmp_path / "one", tmp_path / "two"])
    assert all(part in str(error.value) for part in ("'zork1'", "/one", "/two", "games/", "PRIORZERO_GAMES"))
    with pytest.raises(StoryError, match="no folder at all"):
        find_story("zork1", [])
    with pytest.raises(StoryError, match="no story file at"):
        find_story(str(tmp_path / "zork1.z5"), [])
    for name in ("", "a\0b"):
        with pytest.raises(StoryError, match="does not name"):
            find_story(name, [tmp_path])


def test_folder_and_unplayable_file_are_refused_with_their_path(tmp_path: Path):
    with pytest.raises(StoryError, match="is a folder"):
        check_story(tmp_path)
    (tmp_path / "game.z5").write_bytes(b"not a story" * 100)
    with pytest.raises(StoryError, match=r"game\.z5 is not a playable story file: its first byte is 110"):
        find_story("game", [tmp_path])
