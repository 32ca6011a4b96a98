"""A user's parts, from modules that are not in the repository, over real Flower: the weights of the plain loop."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from integration.runs import final_weights, largest_difference
from integration.simulation import simulate
from own_cases import CASES, SETTINGS
from reference_parts import plain_loop

from sglr_flower.flower.server import serve
from sglr_flower.run.config import RunConfig

pytestmark = pytest.mark.flower

TRAINED = ("adamw", "momentum", "rmsprop", "all")
"""Stopped after the first round and resumed, over every exchange."""
ALONE = ("model", "data", "loss", "own optimizers", "codec", "defence", "server")
"""Each part by itself, over streams."""
WAYS = {"stream": "server", "grid": "client"}
"""Exchange -> evaluate: both kinds of evaluation on the way."""


def settings(case: str) -> dict[str, object]:
    """The case with its modules by a name that only the folder beside the runs has."""
    values = {key: str(value).replace("own_parts", "elsewhere_parts") for key, value in CASES[case][0].items()}
    numbers = {key: value for key, value in CASES[case][0].items() if not isinstance(value, str)}
    return {**SETTINGS, **values, **numbers}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """All cases on two nodes."""
    root = tmp_path_factory.mktemp("parts")
    shutil.copy(Path(__file__).parents[1] / "own_parts.py", root / "elsewhere_parts.py")

    def body(grid):
        for exchange, evaluate in WAYS.items():
            for case in TRAINED:
                folder = root / f"{case}-{exchange}"
                values = {**settings(case), "exchange": exchange, "evaluate": evaluate, "run-dir": str(folder)}
                serve(grid, {**values, "num-server-rounds": 1})
                (folder / "config.toml").write_text(RunConfig.parse(values).to_toml())
                (folder / "summary.json").unlink()
                serve(grid, {**values, "resume": True})
        for case in ALONE:
            serve(grid, {**settings(case), "exchange": "stream", "run-dir": str(root / f"{case}-stream")})

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]))
        simulate(body, nodes=2, workers=2)
    return root


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("case", "exchange"), [*((case, way) for case in TRAINED for way in WAYS), *((case, "stream") for case in ALONE)]
)
def test_gives_the_weights_of_a_plain_loop(trained: Path, case: str, exchange: str) -> None:
    config = RunConfig.parse({**SETTINGS, **CASES[case][0]})
    assert largest_difference(final_weights(trained / f"{case}-{exchange}"), plain_loop(config, CASES[case][1])) < 1e-9
