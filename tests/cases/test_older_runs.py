"""A run that a version without ``data.json`` began, which kept no more of its data than how many each client has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sglr_flower.errors import UserError
from sglr_flower.run import assembly, inprocess
from sglr_flower.run.config import RunConfig

VALUES = {
    **{"dataset": "digits", "partition": "dirichlet:0.5", "num-clients": 4, "samples-per-client": 0},
    **{"num-server-rounds": 1, "batch-size": 64, "evaluate-samples": 20},
}


def test_it_is_resumed_where_its_clients_have_what_they_had(tmp_path: Path) -> None:
    config = RunConfig.parse(VALUES | {"run-dir": str(tmp_path / "run")})
    inprocess.run(config)
    (tmp_path / "run" / "data.json").unlink()
    resumed = config.replace(resume=True)
    assembly.pin_data(resumed)  # and so it is known from now on
    assert (tmp_path / "run" / "data.json").exists()

    dealt = json.loads((tmp_path / "run" / "partition.json").read_text())
    dealt["counts"].reverse()  # as before the order of Dirichlet's shares was drawn
    (tmp_path / "run" / "partition.json").write_text(json.dumps(dealt))
    assembly.pin_data(resumed)  # of a run that has kept its data these are
    (tmp_path / "run" / "data.json").unlink()
    with pytest.raises(UserError, match=r"not have the samples that they began with \(.*partition\.json\)"):
        assembly.pin_data(resumed)
    assert not (tmp_path / "run" / "data.json").exists()
