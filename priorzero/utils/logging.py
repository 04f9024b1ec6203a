"""Loggers that know of ranks: what is worth saying once is said once."""

from __future__ import annotations

import logging
import warnings
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


# Advice and deprecations of libraries that say nothing of this program: data is made by the collector, in this process.
_QUIET = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"Be aware that when using `ckpt_path`, callbacks",
    r"The '.*_dataloader' does not have many workers",
    r"Total length of .* across ranks is zero",
    r"Your `IterableDataset` has `__len__` defined",
    r".*Found \d+ module\(s\) in eval mode",
    r"`weights_only` was not set",
    r"Experiment logs directory .* exists and is not empty",
)


def quiet_libraries() -> None:
    """Let libraries speak only where something is wrong, and once. Call it after importing Lightning."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    for message in _QUIET:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING)
        logger.handlers.clear()  # its own; what it says goes to the handlers of the program
        logger.propagate = True
