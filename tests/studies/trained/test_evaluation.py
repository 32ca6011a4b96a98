"""Accuracy per client and per class, confusion, and what is written of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trained_runs
from PIL import Image
from torch import Tensor
from typer import Typer
from typer.testing import CliRunner

from sglr_flower.cli.trained import evaluate
from sglr_flower.data.imagefiles import class_folder
from sglr_flower.data.inputs import grey
from sglr_flower.data.samples import Batch
from sglr_flower.data.source import Source
from sglr_flower.data.targets import Classes
from sglr_flower.errors import UserError
from sglr_flower.run import assembly
from sglr_flower.studies.trained import evaluation, targets
from sglr_flower.studies.trained import network as trained
from sglr_flower.studies.trained.confusion import save_confusion
from sglr_flower.studies.trained.evaluation import Evaluation
from sglr_flower.studies.trained.network import Trained


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("evaluation") / "run"
    return {**trained_runs.run(path, num_clients=3, samples_per_client=30, num_server_rounds=3), "run_dir": path}


@pytest.fixture(scope="module")
def model(summary: dict[str, Any]) -> Trained:
    return trained.load(summary["run_dir"])


@pytest.fixture(scope="module")
def runner() -> CliRunner:
    return CliRunner(env={"COLUMNS": "150"})


@pytest.fixture(scope="module")
def app() -> Typer:
    app = Typer()
    app.command()(evaluate)
    return app


class Answers:
    """A model of three classes whose clients answer as told."""

    classes = ("a", "b", "c")
    clients = (0, 1)
    same = False

    def __init__(self, probabilities: dict[int, list[list[float]]]) -> None:
        self.probabilities = probabilities

    def check_client(self, client: int) -> None:
        assert client in self.probabilities

    def logits(self, client: int, images: Tensor) -> Tensor:
        return torch.tensor(self.probabilities[client], dtype=torch.float64).log()


def test_everything_follows_from_the_confusion_as_counted_by_hand() -> None:
    """Images of classes a, a, a, b, b, none of c. The first client says a, b, c, b, b; the second a, a, b, a, c."""
    answers = Answers(
        {
            0: [[0.9, 0.05, 0.05], [0.3, 0.6, 0.1], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1]],
            1: [[0.9, 0.05, 0.05], [0.5, 0.4, 0.1], [0.1, 0.7, 0.2], [0.5, 0.4, 0.1], [0.2, 0.1, 0.7]],
        }
    )
    images = Batch(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 0, 1, 1]))
    scored = evaluation.evaluate(answers, images)  # type: ignore[arg-type]

    assert scored.confusion[0].tolist() == [[1, 1, 1], [0, 2, 0], [0, 0, 0]]
    assert scored.confusion[1].tolist() == [[2, 1, 0], [1, 0, 1], [0, 0, 0]]
    assert scored.total.tolist() == [[3, 2, 1], [1, 2, 1], [0, 0, 0]]
    assert scored.accuracy == {0: 3 / 5, 1: 2 / 5}
    assert scored.images == 5
    # Of a: 1/3 and 2/3; of b: 1 and 0.
    assert scored.class_accuracy == {"a": pytest.approx(1 / 2), "b": pytest.approx(1 / 2), "c": None}
    # Means: (.9 .05 .05) a, (.4 .5 .1) b, (.15 .45 .4) b, (.3 .6 .1) b, (.15 .45 .4) b: all but the second and third.
    assert scored.ensemble_accuracy == pytest.approx(3 / 5)
    spread = scored.spread()
    assert (spread["mean"], spread["std"], spread["min"], spread["max"]) == pytest.approx((0.5, 0.1, 0.4, 0.6))


def test_it_agrees_with_what_the_run_itself_measured(model: Trained, summary: dict[str, Any]) -> None:
    spread = evaluation.evaluate(model, assembly.splits(model.config).test).spread()

    assert spread["mean"] == pytest.approx(summary["last_round_test_accuracy_mean"], abs=1e-9)
    assert spread["std"] == pytest.approx(summary["last_round_test_accuracy_std"], abs=1e-9)
    assert spread["mean"] > 0.2  # it has learnt something: chance is 0.1


def test_validation_agrees_with_the_run_too(model: Trained) -> None:
    target = targets.run_target(model, "validation")
    row = model.history.rows[-1]

    assert target.name == "digits-validation"
    assert evaluation.evaluate(model, target.images).spread()["mean"] == pytest.approx(row.validation_score_mean)


def test_clients_that_share_one_network_are_scored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = trained_runs.run(tmp_path / "run", method="fedavg")
    model = trained.load(tmp_path / "run")
    scored: list[int] = []
    plain = Trained.logits
    monkeypatch.setattr(Trained, "logits", lambda self, i, images: (scored.append(i), plain(self, i, images))[1])
    result = evaluation.evaluate(model, assembly.splits(model.config).test)

    assert scored == [0]
    assert result.accuracy == {i: pytest.approx(summary["last_round_test_accuracy_mean"]) for i in (0, 1)}


def test_the_command_writes_what_it_shows(summary: dict[str, Any], runner: CliRunner, app: Typer) -> None:
    result = runner.invoke(app, [str(summary["run_dir"])])
    folder = summary["run_dir"] / "evaluation"
    written = json.loads((folder / "evaluation.json").read_text())
    rows = list(csv.reader((folder / "confusion.csv").open()))

    assert result.exit_code == 0, result.output
    mean = summary["last_round_test_accuracy_mean"]
    assert f"{100 * mean:.2f}" in result.output
    assert written["accuracy"]["mean"] == pytest.approx(mean)
    assert written["evaluated"] == {"data set": "digits", "split": "test", "images": 297}
    assert list(written["client_accuracy"]) == ["0", "1", "2"]
    assert np.mean(list(written["client_accuracy"].values())) == pytest.approx(mean)
    assert rows[0] == ["true \\ predicted", *"0123456789"]
    counts = np.array([row[1:] for row in rows[1:]], dtype=int)
    assert counts.sum() == 3 * 297
    assert counts.trace() / counts.sum() == pytest.approx(mean)
    assert written["class_accuracy"]["4"] == pytest.approx(counts[4, 4] / counts[4].sum())
    assert Image.open(folder / "confusion.png").size[0] > 500
    assert not list(folder.glob(".*"))


def test_what_was_evaluated_names_the_folder(summary: dict[str, Any], runner: CliRunner, app: Typer) -> None:
    def folders(*options: str) -> str:
        result = runner.invoke(app, [str(summary["run_dir"]), *options])
        assert result.exit_code == 0, result.output
        return result.output.rpartition("written: ")[2].strip()

    root = str(summary["run_dir"] / "evaluation")
    assert folders("--samples", "20", "--client", "1") == f"{root}/digits-test-20-client-1"
    assert folders("--samples", "20", "--split", "validation") == f"{root}/digits-validation-20"
    assert json.loads(Path(f"{root}/digits-validation-20/evaluation.json").read_text())["evaluated"]["images"] == 20


def test_an_interrupted_writing_leaves_no_evaluation_that_looks_whole(
    model: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = targets.sample(targets.run_target(model), model, 10)
    scored = evaluation.evaluate(model, target.images, [0])
    folder = evaluation.save(scored, model, target)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "save_confusion", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluation.save(scored, model, target)
    assert (folder / "confusion.png").exists()
    assert not (folder / "evaluation.json").exists()


def test_own_images_are_scored_as_the_data_sets_own(model: Trained, tmp_path: Path) -> None:
    """The run's stored test images, as files in folders, get the answers that they get without the detour."""
    test = assembly.splits(model.config).test
    for index in range(40):
        folder = tmp_path / "own" / model.classes[test.labels[index]] / "deeper"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = test.images[index, 0].numpy()
        Image.fromarray(pixels).convert("RGB" if index % 2 else "L").save(folder / f"{index}.png")
    (tmp_path / "own" / ".hidden").mkdir()
    target = targets.folder_target(model, tmp_path / "own")
    expected = evaluation.evaluate(model, test.take(torch.arange(40)))

    assert target.name.startswith("images-own-")
    assert target.images.images.shape == (40, 1, 16, 16)
    assert evaluation.evaluate(model, target.images).total.tolist() == expected.total.tolist()


def test_another_data_set_is_matched_by_its_classes_names(model: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the digits 7 and 3 only, in colour."""
    test = assembly.splits(model.config).test
    threes, sevens = test.take(test.labels == 3), test.take(test.labels == 7)
    images = torch.cat([sevens.images, threes.images]).expand(-1, 3, -1, -1)
    labels = torch.tensor([0] * len(sevens) + [1] * len(threes))
    other = Batch(images, labels)
    asked: list[tuple[object, ...]] = []

    def load(*arguments: object) -> Source:
        asked.append(arguments)
        return Source(other, other, other, Classes(("7", "3")))

    monkeypatch.setattr(targets.datasets, "load", load)
    target = targets.dataset_target(model, "mnist")
    own = evaluation.evaluate(model, test).total

    assert asked == [("mnist", "", 0, 16)]
    assert target.name == "mnist-test"
    assert target.images.images.shape[1:] == (1, 16, 16)
    total = evaluation.evaluate(model, target.images).total
    assert total[[3, 7]].tolist() == own[[3, 7]].tolist()
    assert total.sum() == own[[3, 7]].sum()


def test_colour_is_made_grey_as_pil_does_it() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    made = grey(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    assert np.array_equal(made[0, 0].numpy(), np.array(Image.fromarray(pixels).convert("L")))


def test_a_data_set_of_other_classes_is_refused_before_it_is_downloaded(
    model: Trained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SGLR_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"^--dataset fashion-mnist: its class 'T-shirt/top' is none of the model's: 0"):
        targets.dataset_target(model, "fashion-mnist")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_an_unknown_class_is_refused_with_the_known_ones(model: Trained, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing: there is no such folder"):
        targets.folder_target(model, tmp_path / "missing")
    with pytest.raises(UserError, match=r"it must hold CLASS/IMAGE files; the classes are 0, 1, .* 9"):
        targets.folder_target(model, tmp_path)
    (tmp_path / "seven").mkdir()
    with pytest.raises(UserError, match=r"'seven' is no class of the model; they are 0, 1, .* 9"):
        targets.folder_target(model, tmp_path)
    (tmp_path / "seven").rename(tmp_path / "7")
    (tmp_path / "7" / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"broken\.png is not an image"):
        targets.folder_target(model, tmp_path)


def test_a_class_whose_name_no_folder_can_have_has_another() -> None:
    assert class_folder("T-shirt/top") == "T-shirt-top"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--images", "somewhere", "--dataset", "mnist"], "--images somewhere: it cannot be combined with --dataset"),
        (["--images", "somewhere", "--split", "test"], "--images somewhere: it cannot be combined with --split"),
        (["--split", "train"], "--split train: it must be one of test, validation"),
        (["--dataset", "nothing"], "run-config key dataset = 'nothing': it must be one of"),
        (["--client", "7"], "--client 7: "),
    ],
)
def test_a_wrong_option_is_one_sentence(
    summary: dict[str, Any], runner: CliRunner, app: Typer, options: list[str], sentence: str
) -> None:
    result = runner.invoke(app, [str(summary["run_dir"]), *options])
    assert isinstance(result.exception, UserError)
    assert str(result.exception).startswith(sentence)


def test_many_clients_and_classes_are_summed_up(model: Trained) -> None:
    names = tuple(f"class {k}" for k in range(30))
    matrices = {i: np.diag(np.full(30, 10)).astype(np.int64) for i in range(21)}
    matrices[3][5] = np.roll(matrices[3][5], 1)
    many = Evaluation(names, matrices, 1.0)
    overall, quantiles, classes = evaluation.tables(many, targets.run_target(model))

    assert [column.header for column in quantiles.columns] == ["min", "5 %", "25 %", "median", "75 %", "95 %", "max"]
    assert next(iter(quantiles.columns[0].cells)) == "96.67"
    assert classes.row_count == 20
    assert next(iter(classes.columns[0].cells)) == "class 5"
    assert overall.row_count == 1


@pytest.mark.parametrize("count", [2, 100])
def test_a_picture_of_few_or_many_classes_is_drawn_whole_or_not_at_all(tmp_path: Path, count: int) -> None:
    names = [f"class number {k}" for k in range(count)]
    matrix = np.eye(count, dtype=np.int64)
    matrix[1, 1] = 0  # no image of it
    save_confusion(matrix, names, "a title", tmp_path / "confusion.png")
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.png"]
    assert np.asarray(Image.open(tmp_path / "confusion.png").convert("L")).min() < 100
