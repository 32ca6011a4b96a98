"""Nothing that a test writes may land in the user's home, and tests beside other work must not collapse."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

_HOME = tempfile.TemporaryDirectory(prefix="sglr-tests-")
# Before anything reads them, and inherited by the processes that tests start.
os.environ |= {
    "XDG_STATE_HOME": f"{_HOME.name}/state",
    "XDG_DATA_HOME": f"{_HOME.name}/share",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    # ray.init() would join a cluster that another test session on this machine has named in the default directory.
    "RAY_TMPDIR": _HOME.name,
    # Two processes of two threads each on two cores take twenty times as long. Simulated nodes set their own number.
    "OMP_NUM_THREADS": "1",
}

# A shell starts what runs in its background with Ctrl-C ignored, which children inherit: tests that interrupt a child
# would wait for ever. With a handler here, children start with the default.
signal.signal(signal.SIGINT, signal.default_int_handler)

# An example that takes longer than Hypothesis allows for would be a failure: on a busy machine any may.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

SLOW = (
    *("bench/test_device.py", "bench/test_progress.py", "faults", "integration", "models/test_own_models.py"),
    *("run/track", "split/test_methods.py", "split/test_privacy.py", "studies/convergence/test_analyze.py"),
    *("studies/leakage/test_attack.py", "studies/leakage/test_command.py", "studies/leakage/test_decoder.py"),
    *("studies/leakage/test_inversion.py", "studies/paper", "studies/trained/test_evaluation.py"),
    *("studies/trained/test_export.py", "studies/trained/test_prediction.py"),
)
"""Folders and files whose tests train in processes of their own, or for long: left to `make test` by `make check`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow ones."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)
