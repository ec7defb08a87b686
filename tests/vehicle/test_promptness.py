"""The agent's real-time class, each time in a process of its own."""

import os
import subprocess
import sys
import textwrap

import pytest

MAY_ASK = os.geteuid() == 0
needs_right = pytest.mark.skipif(not MAY_ASK, reason="only root may ask for the real-time class")


def run(body: str) -> list[str]:
    """Run lines of Python; return what they printed."""
    script = "import os, threading, time\nfrom edge_runtime.contract import limits\n"
    script += "from edge_runtime.vehicle import promptness\n" + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs_right
def test_the_event_loops_thread_alone_is_in_the_class() -> None:
    said = run(
        """
        import subprocess, sys
        assert promptness.be_prompt()
        own = os.sched_getscheduler(0)
        assert own == os.SCHED_RR | os.SCHED_RESET_ON_FORK, own
        seen = []
        thread = threading.Thread(target=lambda: seen.append(os.sched_getscheduler(0)))
        thread.start()
        thread.join()
        assert seen == [os.SCHED_OTHER], seen
        child = "import os; print(os.sched_getscheduler(0) == os.SCHED_OTHER)"
        print(subprocess.run([sys.executable, "-c", child], capture_output=True).stdout)
        assert promptness.be_prompt(), "twice is as good as once"
        """
    )
    assert "True" in said[-1]


@needs_right
def test_who_does_not_let_go_loses_it() -> None:
    said = run(
        """
        limits.REALTIME_SOFT_MS = 50
        assert promptness.be_prompt()
        until_s = time.monotonic() + 30
        while os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK != os.SCHED_OTHER:
            assert time.monotonic() < until_s
        """
    )
    assert any("realtime_class_given_back" in line for line in said)


def test_without_the_right_the_ordinary_class_does() -> None:
    said = run(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
        if os.geteuid() == 0:
            os.setuid(65534)
        assert not promptness.be_prompt()
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
        """
    )
    assert any("ordinary_class" in line for line in said)
