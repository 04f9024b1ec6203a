"""Loggers that know of ranks: what is worth saying once is said once."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from priorzero.utils.launch import rank


class RankLogger(logging.LoggerAdapter):
    """A standard logger for processes that train together.

    Messages below ``WARNING`` come from rank 0 only, unless logged with ``all_ranks=True``. Messages of other ranks
    begin with their number.
    """

    def log(self, level: int, msg: object, *args: Any, all_ranks: bool = False, **kwargs: Any) -> None:
        """Log ``msg % args``; ``all_ranks`` lets every rank speak."""
        if rank() > 0 and level < logging.WARNING and not all_ranks:
            return
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        super().log(level, msg, *args, **kwargs)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Put the rank before the message."""
        number = rank()
        return (f"[rank {number}] {msg}" if number > 0 else msg), kwargs


def get_logger(name: str) -> RankLogger:
    """The rank-aware logger of the module ``name`` (pass ``__name__``)."""
    return RankLogger(logging.getLogger(name), {})
