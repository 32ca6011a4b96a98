"""Nothing that a test writes may land in the user's home."""

from __future__ import annotations

import os
import tempfile

_HOME = tempfile.TemporaryDirectory(prefix="sglr-tests-")
# Before anything reads them, and inherited by the processes that tests start.
os.environ["XDG_STATE_HOME"] = f"{_HOME.name}/state"
os.environ["XDG_DATA_HOME"] = f"{_HOME.name}/share"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
