"""What a run's networks take image files for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import trained_runs
from PIL import Image
from typer import Typer
from typer.testing import CliRunner, Result

from sglr_flower.cli.trained import predict
from sglr_flower.errors import UserError
from sglr_flower.run import assembly
from sglr_flower.studies.trained import network as trained
from sglr_flower.studies.trained import prediction
from sglr_flower.studies.trained.network import Trained


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    path = tmp_path_factory.mktemp("prediction") / "run"
    trained_runs.run(path, num_server_rounds=2)
    return trained.load(path)


@pytest.fixture
def image(model: Trained, tmp_path: Path) -> Path:
    """A test image as a file."""
    path = tmp_path / "seven.png"
    Image.fromarray(assembly.splits(model.config).test.images[5, 0].numpy()).save(path)
    return path


def invoke(model: Trained, *arguments: object) -> Result:
    app = Typer()
    app.command()(predict)
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(model.run_dir), *map(str, arguments)])


def test_the_ensemble_is_the_mean_of_the_clients_probabilities(model: Trained) -> None:
    images = assembly.splits(model.config).test.images[:5]
    both = [prediction.predict(model, images, client) for client in (0, 1)]
    mean = prediction.predict(model, images)

    with torch.no_grad():
        inputs = (images.float() / 127.5 - 1).expand(-1, 3, -1, -1)
        assert torch.allclose(both[1], model.network(1)(inputs).softmax(dim=1).double(), atol=1e-6)
    assert not torch.allclose(both[0], both[1], atol=1e-3)
    assert torch.allclose(mean, (both[0] + both[1]) / 2)
    assert torch.allclose(mean.sum(dim=1), torch.ones(5, dtype=torch.float64))


def test_the_command_names_the_most_probable_classes(model: Trained, image: Path) -> None:
    result = invoke(model, image, "--top", 2)
    values, classes = prediction.predict(model, assembly.splits(model.config).test.images[5:6])[0].sort(descending=True)

    assert result.exit_code == 0, result.output
    assert "mean probabilities of 2 clients' networks (the ensemble)" in result.output
    rows = [line.replace("│", " ").split() for line in result.output.splitlines() if "│" in line]
    assert rows == [
        [str(image), str(int(classes[0])), f"{100 * values[0]:.2f}"],
        [str(int(classes[1])), f"{100 * values[1]:.2f}"],
    ]


def test_one_clients_opinion_is_called_so(model: Trained, image: Path) -> None:
    assert "probabilities of client 1's network" in invoke(model, image, "--client", 1).output
    assert "--client 2" in str(invoke(model, image, "--client", 2).exception)


def test_more_classes_than_there_are_are_all_of_them(model: Trained, image: Path) -> None:
    assert sum("│" in line for line in invoke(model, image, "--top", 50).output.splitlines()) == 10


def test_a_file_that_cannot_be_read_is_named_after_the_others_are_predicted(
    model: Trained, image: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    result = invoke(model, tmp_path / "notes.txt", image, tmp_path / "missing.png")

    assert str(image) in result.output
    assert isinstance(result.exception, UserError)
    assert "notes.txt" in str(result.exception)
    assert "missing.png" in str(result.exception)
    assert "seven.png" not in str(result.exception)


def test_images_of_any_kind_and_size_are_read(model: Trained, tmp_path: Path) -> None:
    Image.new("RGBA", (300, 20), (200, 10, 10, 255)).save(tmp_path / "[bold]wide.webp")
    Image.new("P", (5, 90)).save(tmp_path / "tall.gif")
    result = invoke(model, tmp_path / "[bold]wide.webp", tmp_path / "tall.gif")

    assert result.exit_code == 0, result.output
    assert "[bold]wide.webp" in result.output


def test_clients_that_have_one_network_are_no_ensemble(tmp_path: Path) -> None:
    trained_runs.run(tmp_path / "run", method="fedavg")
    model = trained.load(tmp_path / "run")
    Image.new("L", (16, 16)).save(tmp_path / "black.png")

    assert "the network that all 2 client(s) have" in invoke(model, tmp_path / "black.png").output
