"""How a process that left no result ended, told from evidence that the tests lay out as files."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from longvis_bench.isolation.exit_status import Ended, classify_ending, oom_evidence, read_oom_counters
from longvis_bench.records import Settings

SETTINGS = Settings(timeout_s=7, memory_limit_bytes=2 << 30)


def lay_out(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


V2 = {
    "proc/self/cgroup": "0::/user/job\n",
    "sys/fs/cgroup/user/job/memory.events": "low 0\nhigh 0\nmax 4\noom 1\noom_kill 1\noom_group_kill 0\n",
}
V1 = {
    "proc/self/cgroup": "12:cpu,cpuacct:/x\n4:memory:/job\n1:name=systemd:/x\n",
    "sys/fs/cgroup/memory/job/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
}
V1_CONTAINER = {
    "proc/self/cgroup": "4:memory:/docker/0123\n",
    "sys/fs/cgroup/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
}
MACHINE = {"proc/vmstat": "nr_free_pages 3\noom_kill 1\ndrop_pagecache 0\n"}


@pytest.mark.parametrize(
    ("files", "source"),
    [
        (V2 | MACHINE, "memory.events"),
        (V1 | MACHINE, "memory.oom_control"),
        (V1_CONTAINER | MACHINE, "memory.oom_control"),
        ({"proc/self/cgroup": "0::/\n"} | MACHINE, "vmstat"),
        (MACHINE, "vmstat"),
    ],
)
def test_the_nearest_counter_is_the_evidence(files: dict[str, str], source: str, tmp_path: Path) -> None:
    lay_out(tmp_path, files)
    before = read_oom_counters(tmp_path)
    assert oom_evidence(before, read_oom_counters(tmp_path)) is None
    lay_out(tmp_path, {name: text.replace("oom_kill 1", "oom_kill 2") for name, text in files.items()})
    after = read_oom_counters(tmp_path)
    assert oom_evidence(before, after) == source
    killed = Ended(signal=signal.SIGKILL)
    status, reason = classify_ending(killed, SETTINGS, source)
    assert status == "host_oom"
    assert source in reason
    assert "try a smaller batch" in reason


def test_a_kill_elsewhere_on_the_machine_is_no_evidence(tmp_path: Path) -> None:
    lay_out(tmp_path, V2 | MACHINE)
    before = read_oom_counters(tmp_path)
    lay_out(tmp_path, {"proc/vmstat": "oom_kill 2\n"})
    assert oom_evidence(before, read_oom_counters(tmp_path)) is None


@pytest.mark.parametrize("text", ["", "oom_kill\n", "oom_kill x\n", "oom_kill_disable 0\nunder_oom 0\n"])
def test_counters_that_say_nothing_are_passed_over(text: str, tmp_path: Path) -> None:
    lay_out(tmp_path, {"proc/self/cgroup": "garbage\n0::/\n", "sys/fs/cgroup/memory.events": text})
    assert read_oom_counters(tmp_path) == {}
    assert oom_evidence({}, {}) is None


@pytest.mark.parametrize(
    ("ended", "oom_file", "log", "status", "words"),
    [
        (Ended(exit_code=0), None, "", "crashed", "exit code 0 and no result; look"),
        (Ended(exit_code=3), "vmstat", "", "crashed", "exit code 3 and no result"),
        (Ended(signal=11), None, "", "crashed", "SIGSEGV"),
        (Ended(signal=7), None, "", "crashed", "SIGBUS"),
        (Ended(signal=4), None, "", "crashed", "SIGILL (an instruction that this processor lacks"),
        (Ended(signal=9), None, "", "crashed", "SIGKILL (not from the OOM killer, which counted no kill"),
        (Ended(signal=11), "memory.events", "", "crashed", "SIGSEGV"),
        (Ended(signal=250), None, "", "crashed", "signal 250"),
        (Ended(signal=6), None, "what():  std::bad_alloc", "host_oom", "native code ran out"),
        (Ended(signal=9, timed_out=True), None, "", "timeout", "no result after 7 s; raise --timeout"),
        (Ended(signal=9, timed_out=True), "memory.events", "", "timeout", "raise --timeout"),
        (Ended(signal=9, cancelled=True), None, "", "skipped", "interrupted"),
        (
            Ended(signal=9, memory_bytes=3 << 30),
            None,
            "",
            "host_oom",
            "the cell's processes held 3.00 GiB, more than the memory limit of 2.00 GiB; raise "
            "--memory-limit, or try a smaller batch or resolution. --memory-limit also counts the 0.4 GiB or "
            "so of Python and torch",
        ),
        (Ended(server_exit=-9), None, "", "crashed", "the fork server ended (SIGKILL)"),
        (Ended(server_exit=-9), "memory.events", "", "host_oom", "the kernel's OOM killer"),
        (Ended(server_exit=1), None, "", "crashed", "(exit 1)"),
    ],
)
def test_each_ending_has_its_status_and_advice(
    ended: Ended, oom_file: str | None, log: str, status: str, words: str
) -> None:
    got, reason = classify_ending(ended, SETTINGS, oom_file, log)
    assert got == status
    assert words in reason
    assert reason == "interrupted" or ";" in reason or "(" in reason
