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


BUSY_THEN_QUIET = """
    import asyncio, resource
    limits.REALTIME_SOFT_MS, limits.REALTIME_QUIET_MS = 50, 200
    ORDINARY = os.SCHED_OTHER

    def own():
        return os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK

    async def until(is_true):
        async with asyncio.timeout(30):
            while not is_true():
                await asyncio.sleep(0.01)

    def burn():
        until_s = time.monotonic() + 30
        while own() != ORDINARY:
            assert time.monotonic() < until_s
"""


@needs_right
def test_a_service_regains_it_when_it_has_been_quiet() -> None:
    """As under systemd, where root may set limits: the class given, a limit of 1, no capability."""
    said = run(
        BUSY_THEN_QUIET
        + """
    async def main():
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
        try:
            resource.setrlimit(resource.RLIMIT_RTPRIO, (1, 1))
            os.setuid(65534)
        except ValueError:
            pass  # the root of a container, who may ask as he is
        async with promptness.prompt():
            for _ in range(2):
                burn()
                await until(lambda: own() == os.SCHED_RR)

    asyncio.run(main())
    """
    )
    assert sum("realtime_class_given_back" in line for line in said) == 2
    waited = [line.rpartition("quiet_s=")[2] for line in said if "realtime_class_regained" in line]
    assert [wait.strip() for wait in waited] == ["0.2", "0.4"], "after twice as long"


@needs_right
def test_who_stays_busy_stays_in_the_ordinary_class() -> None:
    said = run(
        BUSY_THEN_QUIET
        + """
    async def main():
        async with promptness.prompt():
            burn()
            until_s = time.monotonic() + 1.5
            while time.monotonic() < until_s:
                busy_until_s = time.thread_time() + 0.02
                while time.thread_time() < busy_until_s:
                    pass
                await asyncio.sleep(0)
            assert own() == ORDINARY

    asyncio.run(main())
    """
    )
    assert not any("regained" in line for line in said)


@needs_right
def test_without_the_limit_it_is_lost_for_good_and_says_so() -> None:
    said = run(
        BUSY_THEN_QUIET
        + """
    async def main():
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
        resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
        os.setuid(65534)
        async with promptness.prompt():
            burn()
            tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            await until(lambda: tasks[0].done())
            assert own() == ORDINARY

    asyncio.run(main())
    """
    )
    assert any("realtime_class_lost" in line for line in said)
