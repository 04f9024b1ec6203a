"""Finds story files and checks them before an interpreter sees them.

The interpreter ends its process on a bad file, so a file is read in Python first. The header is that of the Z-Machine
Standards Document 1.1, section 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from priorzero.envs.base import EnvError

SUFFIXES = (".z3", ".z4", ".z5", ".z8")
_LENGTH_UNIT = {3: 2, 4: 4, 5: 4, 8: 8}  # version of the Z-machine -> bytes per unit of the length in the header
_HEADER_BYTES = 64
_ADDRESSES = {"start of the program": 6, "dictionary": 8, "object table": 10, "global variables": 12}


class StoryError(EnvError):
    """A story file is missing or cannot be played; the message says which and what to do."""


def find_story(story: str, folders: Sequence[str | Path]) -> Path:
    """Finds a story file and checks it.

    Args:
        story: a file name with or without its suffix ("zork1.z5", "zork1"), looked up in the folders in order, or
            a path.
        folders: where to look.

    Returns:
        The absolute path of a file that passed `check_story`.

    Raises:
        StoryError: if there is no such file or it is not a playable story file.
    """
    given = Path(story)
    if not story or "\0" in story:
        raise StoryError(f"{story!r} does not name a story file: give a name such as 'zork1' or a path.")
    if len(given.parts) > 1:
        check_story(given)
        return given.absolute()
    names = [story, *(story + suffix for suffix in SUFFIXES)]
    for path in (Path(folder) / name for folder in folders for name in names):
        if path.exists():
            check_story(path)
            return path.absolute()
    searched = ", ".join(dict.fromkeys(str(Path(folder).absolute()) for folder in folders)) or "no folder at all"
    raise StoryError(
        f"There is no story file {story!r} (searched: {searched}; suffixes {' '.join(SUFFIXES)}). "
        "Put the story file in games/ or set PRIORZERO_GAMES to the folder that holds it."
    )


def check_story(path: str | Path) -> None:
    """Checks that a file is a complete story file for version 3, 4, 5 or 8 of the Z-machine.

    Raises:
        StoryError: with the first thing that is wrong.
    """
    path = Path(path)
    if not path.exists():
        raise StoryError(f"There is no story file at {path.absolute()}. Check the path.")
    if not path.is_file():
        raise StoryError(f"{path} is a folder, not a story file. Name the file inside it.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoryError(f"The story file {path} cannot be read ({error.strerror}). Check its permissions.") from error
    fault = story_fault(data)
    if fault:
        raise StoryError(f"{path} is not a playable story file: {fault}. Get a fresh copy of the file.")


def story_fault(data: bytes) -> str:
    """Says what is wrong with the bytes of a story file; empty if nothing is."""
    if not data:
        return "it is empty"
    if len(data) < _HEADER_BYTES:
        return f"it has {len(data)} bytes, less than the header of {_HEADER_BYTES}"
    version = data[0]
    if version not in _LENGTH_UNIT:
        return f"its first byte is {version}, where version 3, 4, 5 or 8 of the Z-machine stands"
    length = _word(data, 26) * _LENGTH_UNIT[version]
    if length > len(data):
        return f"it is cut off: it has {len(data)} bytes and its header says {length}"
    end = length or len(data)  # the oldest files state no length
    for name, offset in _ADDRESSES.items():
        if not _HEADER_BYTES <= _word(data, offset) < end:
            return f"its header places the {name} at {_word(data, offset)}, outside the file"
    checksum = _word(data, 28)
    if length and checksum and sum(data[_HEADER_BYTES:length]) & 0xFFFF != checksum:
        return "its contents do not match the checksum in its header, so it is damaged or altered"
    return ""


def _word(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "big")
