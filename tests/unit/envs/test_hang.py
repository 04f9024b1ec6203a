import subprocess
import sys

from priorzero.envs.hang import HUNG

BEGIN = "import time\nfrom priorzero.envs.hang import ended_after\nwith ended_after(0.2):\n    "


def run(code: str) -> int:
    return subprocess.run([sys.executable, "-c", BEGIN + code], capture_output=True, timeout=60).returncode


def test_a_process_that_does_not_come_back_is_ended():
    assert run("while True: pass") == -HUNG


def test_waiting_is_not_counted_nor_what_comes_behind():
    assert run("time.sleep(0.5)\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass") == 0
