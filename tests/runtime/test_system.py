"""What systems do each in its own way: processes that lead a group, bounds, priorities."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from flawsmith.runtime.system import ask_to_end, end_group, give_way_in_this_thread, start_group

SECONDS = 60
WAITS_WITH_A_CHILD = """
import subprocess, sys
waits = "import sys, time; print('here', flush=True); time.sleep(600)"
subprocess.run([sys.executable, "-c", waits])
"""
ENDS_IN_ORDER = """
import signal, sys, time
from flawsmith.runtime.system import ENDING
for number in ENDING:
    signal.signal(number, lambda *_: sys.exit(7))
print("here", flush=True)
time.sleep(600)
"""
IS_CONFINED = """
import time
from flawsmith.runtime.system import confine
confine(1, None)
time.sleep(600)
"""


def start(code: str, niceness: int = 0) -> subprocess.Popen[bytes]:
    return start_group([sys.executable, "-c", code], niceness=niceness, stdout=subprocess.PIPE)


def test_group_ends_with_its_children() -> None:
    process = start(WAITS_WITH_A_CHILD)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == b"here"  # says the child

    end_group(process.pid)

    assert process.communicate(timeout=SECONDS) == (b"", None)  # the output that all of them held is closed
    assert process.returncode != 0


def test_process_that_is_asked_ends_in_order() -> None:
    process = start(ENDS_IN_ORDER)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == b"here"

    ask_to_end(process.pid)

    process.communicate(timeout=SECONDS)
    assert process.returncode == 7


def test_who_has_ended_is_neither_asked_nor_ended() -> None:
    process = start("")
    process.communicate(timeout=SECONDS)

    ask_to_end(process.pid)
    end_group(process.pid)


def test_confined_process_ends_when_its_time_is_over() -> None:
    process = start(IS_CONFINED)

    process.communicate(timeout=SECONDS)

    assert process.returncode != 0


@pytest.mark.skipif(not hasattr(os, "getpriority"), reason="Windows has classes of priority")
def test_group_gives_way_and_is_out_of_reach_of_this_terminal() -> None:
    process = start(WAITS_WITH_A_CHILD, niceness=10)
    assert process.stdout is not None
    try:
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == 10
        assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
    finally:
        end_group(process.pid)
        process.communicate(timeout=SECONDS)


@pytest.mark.skipif(sys.platform != "linux", reason="where threads have a priority each")
def test_one_thread_gives_way_and_the_others_do_not() -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def give_way() -> int:
        give_way_in_this_thread()
        return priority()

    before = priority()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(give_way).result() == 19
    assert priority() == before
