"""What `sglr_flower.federation.internals` has of Flower and Ray is so in the versions that are installed.

Where the code that makes a text can be called here, it is; else the text must be in the module that says it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import flwr
import httpx
import pytest
import ray
import uvicorn
from flwr.cli import ls
from flwr.cli.run_utils import format_runs
from flwr.clientapp.client_app import ClientAppException
from flwr.common.constant import ErrorCode, Status, SubStatus
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.run import Run, RunStatus
from flwr.superlink.main import create_app

from sglr_flower.federation import internals as flower
from sglr_flower.federation import submit
from sglr_flower.federation.processes import environment, script

PACKAGE = Path(flower.__file__).parents[1]
PUBLIC = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy", "flwr.simulation"}
RAYLET = Path(ray.__file__).parent / "_raylet.so"


def texts(module: str) -> str:
    """All texts in a module's code, each on lines of its own; those of an f-string between its values."""
    spec = find_spec(module)
    assert spec is not None, f"there is no module {module} any more"
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    return "\n".join(
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


@pytest.mark.parametrize(
    ("said", "module"),
    [
        (flower.STARTED, "flwr.cli.run.run"),
        (flower.DETAILS, "flwr.simulation.app"),
        (flower.WRAPPERS[0], "flwr.simulation.run_simulation"),
        (flower.WRAPPERS[1], "flwr.server.superlink.fleet.vce.vce_api"),
        (flower.CONNECTED, "flwr.supernode.start_client_internal"),
        (flower.ENDED, "flwr.supernode.start_client_internal"),
        (flower.UNKNOWN_KEY, "flwr.supercore.error.catalog"),
        (flower.DEAF, "flwr.supercore.retry.http_retry"),
        (flower.KEY_KNOWN, "flwr.superlink.servicer.control.control_handlers"),
        (flower.RAY_LATE[0], "ray._private.node"),
    ],
)
def test_it_is_still_said(said: str, module: str) -> None:
    assert said in texts(module)


def test_ray_still_says_that_a_service_was_late() -> None:
    assert flower.RAY_LATE[1].encode() in RAYLET.read_bytes()


def test_an_error_of_the_command_line_is_in_a_box(tmp_path: Path) -> None:
    done = subprocess.run(
        [script("flwr"), "run", str(tmp_path / "nothing")],
        env={**os.environ, "FLWR_HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode
    assert flower.box(f"before\n{done.stdout}after\n").startswith("Failed to load Flower App configuration in")
    assert flower.box("no box") == ""


def test_the_reason_of_a_node_that_raised() -> None:
    assert str(ClientAppException("it broke")).rpartition(flower.CLIENT_RAISED)[2] == "it broke"


def test_a_refused_signature_ends_the_supernode() -> None:
    answer = httpx.Response(401, request=httpx.Request("POST", "https://192.168.1.10/v1/fleet/activate-node"))
    with pytest.raises(httpx.HTTPStatusError) as refusal:
        answer.raise_for_status()
    with pytest.raises(KeyboardInterrupt):  # it interrupts its own process
        make_simple_http_retry_invoker().should_giveup(refusal.value)
    assert "HTTP_401_UNAUTHORIZED" in inspect.getsource(
        importlib.import_module("flwr.superlink.routers.fleet.node_auth")
    )


def test_what_a_registration_prints(capfd: pytest.CaptureFixture[str]) -> None:
    module = "flwr.cli.supernode.register"
    importlib.import_module(module).print_json_to_stdout({"success": True, "node-id": 1})
    assert flower.REGISTERED in capfd.readouterr().out
    assert "success" in texts(module).splitlines()


def test_the_list_of_runs_says_how_one_ended() -> None:
    run = Run.create_empty(7)
    run.status = RunStatus(Status.FINISHED, SubStatus.COMPLETED, "all well")
    (entry,) = json.loads(ls._to_json(format_runs([run], "2026-11-04T00:00:00+00:00")))["runs"]
    assert (entry["run-id"], entry["status-details"]) == ("7", "all well")
    assert entry["status"] == flower.COMPLETED
    assert flower.COMPLETED.startswith(flower.FINISHED)
    for other in (Status.PENDING, Status.STARTING, Status.RUNNING):
        assert not other.startswith(flower.FINISHED)


def test_a_node_that_is_not_there_has_a_code_of_its_own() -> None:
    codes = [value for name, value in vars(ErrorCode).items() if name.isupper()]
    assert codes.count(flower.node_unavailable()) == 1


def test_flowers_own_file_of_connections() -> None:
    assert isinstance(tomllib.loads(flower.default_connections())["superlink"], dict)


def test_the_superlink_is_served_by_the_one_call_that_can_be_guarded() -> None:
    """`federation.superlink` puts its gate there: a SuperLink served in another way would be open."""
    module = inspect.getmodule(flower.superlink())
    assert module is not None
    source = inspect.getsource(module)
    assert re.findall(r"\buvicorn\.\w+", source) == ["uvicorn.run"]
    assert vars(module)["uvicorn"] is uvicorn
    assert not re.findall(r"\b(hypercorn|granian|gunicorn|grpc\.server)\b", source)


def test_the_paths_of_the_superlinks_apis() -> None:
    paths = create_app().openapi()["paths"]
    kinds = {kind for kind in (flower.FLEET, flower.CONTROL, flower.RUNTIME) for path in paths if path.startswith(kind)}
    assert kinds == {flower.FLEET, flower.CONTROL, flower.RUNTIME}
    assert "get" in paths[flower.HEALTH]


def test_the_variables_that_are_set_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that a release has renamed is passed over without a word."""
    for variable in [name for name in os.environ if name.startswith(("FLWR_", "RAY_"))]:
        monkeypatch.delenv(variable)
    ours = {**environment("home"), **submit.environment()}
    for prefix, package in {"FLWR_": flwr, "RAY_": ray}.items():
        files = Path(package.__file__).parent.rglob("*.py")
        code = "\n".join(file.read_text(encoding="utf-8") for file in files if "rllib" not in file.parts)
        unknown = {name for name in ours if name.startswith(prefix) and not re.search(rf"\b{name}\b", code)}
        assert not unknown


def private_imports(file: Path) -> Iterator[str]:
    """The modules of Flower that are not its public API and that a file imports."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name for name in names if name.split(".")[0] == "flwr" and name not in PUBLIC)


def test_no_other_file_takes_what_flower_does_not_promise() -> None:
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.parent.glob("*_app.py")]
    assert {file.name for file in files if list(private_imports(file))} == {"internals.py"}
