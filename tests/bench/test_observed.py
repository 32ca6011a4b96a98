"""What a command cost is that of all its processes, of nobody else's, and none of them is left."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.observed import Marked, is_alive
from benchmarks.simulation import environment

BURN = """
import os, subprocess, sys, time
def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
"""
DETACHED = BURN + "burn(0.4); open('burnt', 'w').close(); time.sleep(600)"
COMMAND = (
    BURN
    + f"""
if not os.path.exists('burnt'):
    detached = subprocess.Popen([sys.executable, '-c', {DETACHED!r}], start_new_session=True)
    open('pid', 'w').write(str(detached.pid))
    while not os.path.exists('burnt'):
        time.sleep(0.01)
burn(0.4)
open(os.environ['SGLR_BENCHMARK_FIRST_STEP'], 'w').write(repr(time.monotonic()))
burn(0.4)
time.sleep(1)  # so that it is looked at once more
"""
)


def test_a_process_in_a_session_of_its_own_is_counted_and_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", COMMAND]
    with Marked(tmp_path) as processes:
        cold = processes.run(command, tmp_path, environment(), memory=True)
        warm = processes.run(command, tmp_path, environment(), memory=False)
        detached = psutil.Process(int((tmp_path / "pid").read_text()))
        assert is_alive(detached)
    assert not is_alive(detached)

    assert (cold.processes, warm.processes) == (2, 2)
    assert cold.processor_seconds > 1.1  # of 1.2 and what Python's start takes
    assert cold.processor_seconds_to_first_step > 0.7
    assert cold.processor_seconds - cold.processor_seconds_to_first_step > 0.3
    assert 0.7 < warm.processor_seconds < cold.processor_seconds - 0.3  # the other was there, and did nothing
    assert 0 < cold.seconds_to_first_step < cold.seconds
    assert cold.processor_seconds == pytest.approx(sum(cold.processor_seconds_of.values()), abs=0.05)
    assert 5e6 < cold.pss_bytes < cold.rss_bytes  # both share Python's own pages
    assert (warm.pss_bytes, warm.rss_bytes) == (0, 0)


@pytest.mark.parametrize("status", [0, 3])
def test_a_command_without_a_first_step_is_an_error_with_what_it_said(status: int, tmp_path: Path) -> None:
    program = f"print('no step today'); raise SystemExit({status})"
    with Marked(tmp_path) as processes, pytest.raises(RuntimeError, match=rf"(?s)exit status {status}.*no step today"):
        processes.run([sys.executable, "-c", program], tmp_path, environment(), memory=False)
