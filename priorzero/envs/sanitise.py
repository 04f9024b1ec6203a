"""Which actions must not reach an interpreter: those that crash it, write files, leave the episode or cheat.

The verbs were collected from the grammars of the 57 games that Jericho knows; no walkthrough of theirs uses one.
"""

from __future__ import annotations

import re
import string

MAX_ACTION_BYTES = 190  # frotz cuts the line at 198
PRINTABLE = frozenset(string.printable) - frozenset("\t\n\r\x0b\x0c\\")
_WRITE_FILES = {"save", "suspend", "restore", "resume", "script", "noscript", "unscript", "transcript", "replay"}
_LEAVE_EPISODE = {"restart", "quit", "q", "die"}  # Inform takes "die" for "quit"
_CHANGE_OUTPUT = {"verbose", "long", "superbrief", "super", "short", "brief", "normal"}
_CORRECT_WORDS = {"oops", "o"}  # could turn a harmless line into one of the above
# Left in detective and omniquest by their makers: they take, move or show what is out of reach, or print every turn.
_CHEAT = {"purloin", "abstract", "gonear", "showobj", "showverb"}
_TRACE = {"actions", "routines", "messages", "timers", "changes"}
BLOCKED_VERBS = frozenset(_WRITE_FILES | _LEAVE_EPISODE | _CHANGE_OUTPUT | _CORRECT_WORDS | _CHEAT | _TRACE)
# Commands to the interpreter where no object follows, verbs of the game otherwise ("undo rope").
BLOCKED_ALONE = frozenset({"undo", "pause", "trace", "tree", "scope", "random"})
_BLOCKED_STEMS = frozenset(verb[:6] for verb in BLOCKED_VERBS)  # old games read six letters of a word
_PREFIXES = ("$", "#", "tw-", "recording")  # "record" alone is a verb of Ballyhoo
_COMMANDS = re.compile(r"[.,;:!?\"]|\bthen\b|\band\b")  # one line may hold several commands
_SWITCH = re.compile(r"(on|off|\d+)?")


def action_fault(action: str) -> str:
    """Says why an action must not reach the interpreter; empty if it may.

    Some characters crash or hang frotz (NUL, a backslash), a newline queues a second command, and some verbs write
    files or leave the episode.
    """
    if not isinstance(action, str):
        return "is not text"
    if not PRINTABLE.issuperset(action):
        return "holds a character that is not printable ASCII, or a backslash"
    if len(action) > MAX_ACTION_BYTES:
        return f"is longer than {MAX_ACTION_BYTES} characters"
    if any(_is_blocked(command) for command in _COMMANDS.split(action.lower())):
        return "is a command to the interpreter, not to the game"
    return ""


def _is_blocked(command: str) -> bool:
    verb, _, rest = command.strip().partition(" ")
    if verb[:6] in _BLOCKED_STEMS or verb.startswith(_PREFIXES):
        return True
    return verb in BLOCKED_ALONE and _SWITCH.fullmatch(rest.strip()) is not None
