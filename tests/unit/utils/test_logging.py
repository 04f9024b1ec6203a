import logging

import pytest

from priorzero.utils.logging import get_logger


@pytest.fixture
def log(monkeypatch, caplog):
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    caplog.set_level(logging.INFO)
    return get_logger("priorzero.test")


def test_rank_zero_speaks_plainly(log, caplog):
    log.info("%d games", 3)
    assert [r.getMessage() for r in caplog.records] == ["3 games"]
    assert caplog.records[0].name == "priorzero.test"
    assert caplog.records[0].funcName == "test_rank_zero_speaks_plainly"


def test_other_ranks_only_warn_and_say_who_they_are(log, caplog, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    log.info("said once")
    log.info("said by all", all_ranks=True)
    log.warning("disk is %s", "full")
    assert [r.getMessage() for r in caplog.records] == ["[rank 1] said by all", "[rank 1] disk is full"]


def test_exceptions_keep_their_traceback(log, caplog):
    try:
        raise ValueError("inner")
    except ValueError:
        log.exception("outer")
    assert caplog.records[0].exc_info[1].args == ("inner",)
