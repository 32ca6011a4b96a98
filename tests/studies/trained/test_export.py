"""A client's network as files that load without this package."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trained_runs
from PIL import Image
from safetensors.torch import load_file, save_file
from typer import Typer
from typer.testing import CliRunner

from sglr_flower.cli import trained as trained_command
from sglr_flower.data.images import read_image
from sglr_flower.data.inputs import to_input
from sglr_flower.errors import UserError
from sglr_flower.run import assembly
from sglr_flower.run.metrics import Best
from sglr_flower.studies.trained import export
from sglr_flower.studies.trained import network as trained
from sglr_flower.studies.trained.network import Trained

FILES = {"model.safetensors", "model.pt2", "model.json", "README.md"}

LOAD = """
import json, sys
sys.modules["sglr_flower"] = None  # an import of it fails
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
folder = Path(sys.argv[1])
network = torch.export.load(folder / "model.pt2").module()
inputs = load_file(sys.argv[2])
save_file({name: network(batch).detach() for name, batch in inputs.items()}, sys.argv[3])
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    path = tmp_path_factory.mktemp("export") / "run"
    trained_runs.run(path, num_server_rounds=3)
    return trained.load(path)


@pytest.fixture(scope="module")
def exported(model: Trained) -> Path:
    return export.export(model, 1)


def alone(cwd: Path, code: str, *arguments: object) -> str:
    """Run Python code in a process of its own, in another folder, where nothing of the checkout can be imported."""
    command = [sys.executable, "-I", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_this_package_it_gives_the_same_logits_for_one_image_and_for_seven(
    model: Trained, exported: Path, tmp_path: Path
) -> None:
    images = to_input(assembly.splits(model.config).test.images[:8], torch.float32)
    save_file({"one": images[:1].clone(), "seven": images[1:].clone()}, tmp_path / "inputs")
    alone(tmp_path, LOAD, exported, tmp_path / "inputs", tmp_path / "outputs")
    outputs = load_file(tmp_path / "outputs")
    with torch.no_grad():
        one, seven = (model.network(1)(batch) for batch in (images[:1], images[1:]))

    assert torch.allclose(outputs["one"], one, rtol=0, atol=1e-6)
    assert torch.allclose(outputs["seven"], seven, rtol=0, atol=1e-6)
    assert seven.std() > 0.1


@pytest.mark.parametrize("codec", ["int8", "topk:0.1"])
def test_clipping_and_a_codec_at_the_cut_are_exported_with_the_network(tmp_path: Path, codec: str) -> None:
    trained_runs.run(tmp_path / "run", wire_up=codec, smashed_clip=15.0)
    model = trained.load(tmp_path / "run")
    exported = export.export(model, 1)
    images = to_input(assembly.splits(model.config).test.images[:8], torch.float32)
    save_file({"all": images}, tmp_path / "inputs")
    alone(tmp_path, LOAD, exported, tmp_path / "inputs", tmp_path / "outputs")
    with torch.no_grad():
        expected = model.network(1)(images)
    assert torch.allclose(load_file(tmp_path / "outputs")["all"], expected, rtol=0, atol=1e-5)


def test_the_readmes_lines_say_what_the_network_says(model: Trained, exported: Path, tmp_path: Path) -> None:
    """The five lines, run as they stand on an image file of another size, name the class of the highest logit."""
    readme = (exported / "README.md").read_text()
    (code,) = re.findall("```python\n(.*?)```", readme, re.DOTALL)
    assert len(code.splitlines()) == 5
    away = Path(shutil.copytree(exported, tmp_path / "away"))
    pixels = assembly.splits(model.config).test.images[0, 0].numpy()
    Image.fromarray(pixels).resize((64, 48)).save(away / "image.png")
    said = alone(away, f'import sys; sys.modules["sglr_flower"] = None\n{code}\nprint(network(pixels).tolist())')
    image = read_image(away / "image.png", model.channels, model.image_size)
    logits = model.logits(1, image[None])

    assert said.splitlines()[0] == model.classes[int(logits.argmax())]
    assert torch.allclose(torch.tensor(json.loads(said.splitlines()[1])), logits, rtol=0, atol=1e-5)


def test_the_files_say_what_they_are(model: Trained, exported: Path) -> None:
    described = json.loads((exported / "model.json").read_text())
    weights, state = load_file(exported / "model.safetensors"), model.network(1).state_dict()

    assert {path.name for path in exported.iterdir()} == FILES
    assert exported == model.run_dir / "export" / "client-1"
    assert weights.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in weights.items())
    assert described["classes"] == list("0123456789")
    assert described["input"]["shape"] == ["batch", 3, 16, 16]
    assert described["input"]["pixels"].endswith("the one channel repeated to 3, divided by 127.5, minus 1")
    assert (described["method"], described["model"], described["cut"]) == ("sglr", "resnet16", "stage2")
    assert (described["client"], described["round"]) == (1, 3)
    best = model.history.best[1]
    assert described["accuracy"]["client_at_its_best_validation_round"]["test_accuracy"] == best.test_score
    assert described["accuracy"]["last_test_accuracy_mean_over_clients"] == model.history.rows[-1].test_score_mean


def test_an_export_is_replaced_and_what_was_put_beside_it_stays(model: Trained, exported: Path, tmp_path: Path) -> None:
    away = Path(shutil.copytree(exported, tmp_path / "away"))
    (away / "mine.txt").write_text("mine")
    export.export(model, 0, away)

    assert {path.name for path in away.iterdir()} == {*FILES, "mine.txt"}
    assert json.loads((away / "model.json").read_text())["client"] == 0
    assert torch.equal(
        load_file(away / "model.safetensors")["stem.0.weight"], model.network(0).state_dict()["stem.0.weight"]
    )
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("content", [{"a.txt": "mine"}, {"model.json": "{}"}, {"model.json": '["format"]'}])
def test_a_folder_of_other_files_is_left_as_it_is(model: Trained, tmp_path: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=r"^--out .*: it holds other files and is left as it is"):
        export.export(model, 0, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == content


def test_a_file_is_no_folder(model: Trained, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"it is a file, it must be"):
        export.export(model, 0, tmp_path / "file")


def test_a_failed_export_leaves_the_one_before(
    model: Trained, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Path(shutil.copytree(exported, tmp_path / "away"))
    before = {path.name: path.read_bytes() for path in away.iterdir()}

    def untraceable(*_: object, **__: object) -> None:
        raise RuntimeError("a branch that depends on data\nat line 3")

    monkeypatch.setattr(torch.export, "export", untraceable)
    with pytest.raises(UserError, match=r"^model = 'resnet16' cannot be exported by torch.export: a branch .* data$"):
        export.export(model, 0, away)
    assert {path.name: path.read_bytes() for path in away.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["away"]


def test_a_network_that_was_not_cut_and_of_float64_is_exported_too(tmp_path: Path) -> None:
    trained_runs.run(tmp_path / "run", method="centralized", dtype="float64")
    folder = export.export(trained.load(tmp_path / "run"), 0)
    network = torch.export.load(folder / "model.pt2").module()
    described = json.loads((folder / "model.json").read_text())

    assert (described["cut"], described["input"]["dtype"]) == ("", "float64")
    assert network(torch.zeros(3, 3, 16, 16, dtype=torch.float64)).dtype == torch.float64


def test_a_network_that_asks_for_its_batch_size_is_exported_for_any(tmp_path: Path) -> None:
    trained_runs.run(tmp_path / "run", model="vit", evaluate_samples=20, samples_per_client=10)
    model = trained.load(tmp_path / "run")
    network = torch.export.load(export.export(model, 1) / "model.pt2").module()
    images = torch.rand(7, 3, 16, 16)

    with torch.no_grad():
        for batch in (images[:1], images):
            assert torch.allclose(network(batch), model.network(1)(batch), rtol=0, atol=1e-6)


def test_the_command_takes_the_best_client(model: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = Typer()
    app.command()(trained_command.export)
    monkeypatch.setattr(trained, "load", lambda *_: model)
    monkeypatch.setattr(model.history, "best", {0: Best(1, 0.2, 0.1), 1: Best(1, 0.3, 0.1)})
    result = CliRunner().invoke(app, [str(model.run_dir), "--out", str(tmp_path / "out")])

    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "model.json").read_text())["client"] == 1
