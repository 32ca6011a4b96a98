"""The pictures, read back from the figures that were drawn."""

import csv
import json

import numpy as np
import pytest
import summaries
from PIL import Image

from sglr_flower.run import plots
from sglr_flower.run.metrics import columns
from sglr_flower.run.rundir import RunDirectory
from sglr_flower.split.score import ACCURACY


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn, in order."""
    drawn, save = [], plots._save
    monkeypatch.setattr(plots, "_save", lambda figure, picture: drawn.append(figure) or save(figure, picture))
    return drawn


def check_picture(picture):
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert 200 <= image.height <= 1200
        assert 900 <= image.width <= 1300
        assert len(image.convert("RGB").getcolors(image.width * image.height)) > 10


# --- curves ---


def write_run(run_dir, accuracies):
    """Write a run with so many rounds, None for one without an evaluation."""
    with (run_dir / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns(ACCURACY), restval="0")
        writer.writeheader()
        for index, accuracy in enumerate(accuracies):
            values = {"test_accuracy_mean": accuracy, "test_accuracy_std": None if accuracy is None else 0.01}
            writer.writerow({"round": index + 1, "train_loss": 2 / (index + 1), **values})
    tested = [accuracy for accuracy in accuracies if accuracy is not None]
    RunDirectory(run_dir).finish(summaries.summary(test_score_mean=max(tested, default=float("nan"))))


def test_curves_have_a_point_for_every_round_and_every_evaluation(tmp_path, figures):
    write_run(tmp_path, [0.5, None, 0.75, None])
    assert plots.save_curves(tmp_path) == tmp_path / "curves.png"
    check_picture(tmp_path / "curves.png")
    loss, accuracy = figures[0].axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 2], [2, 1], [3, 2 / 3], [4, 0.5]]
    assert accuracy.lines[0].get_xydata().tolist() == [[1, 50], [3, 75]]
    assert figures[0].get_suptitle() == "sglr with resnet16 on digits, 4 clients, 75.00 ± 1.00 %"


def test_a_run_without_an_evaluation_has_a_loss_and_says_so(tmp_path, figures):
    write_run(tmp_path, [None, None])
    check_picture(plots.save_curves(tmp_path))
    loss, accuracy = figures[0].axes
    assert len(loss.lines[0].get_xydata()) == 2
    assert not accuracy.lines
    assert [text.get_text() for text in accuracy.texts] == ["no evaluation"]
    assert figures[0].get_suptitle() == "sglr with resnet16 on digits, 4 clients"


def test_a_single_round_is_seen(tmp_path, figures):
    write_run(tmp_path, [0.5])
    plots.save_curves(tmp_path)
    for axes in figures[0].axes:
        assert axes.lines[0].get_marker() == "o"
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


# --- partition ---


def write_partition(run_dir, counts, classes=None):
    names = classes or [f"class {number}" for number in range(len(counts[0]))]
    (run_dir / "partition.json").write_text(json.dumps({"classes": names, "counts": np.asarray(counts).tolist()}))


def random_counts(clients, classes):
    return np.random.default_rng(0).integers(1, 50, (clients, classes))


@pytest.mark.parametrize("clients", [1, 2, 20, 40])
@pytest.mark.parametrize("classes", [2, 10, 20])
def test_few_clients_have_a_stacked_bar_each(tmp_path, figures, clients, classes):
    counts = random_counts(clients, classes)
    write_partition(tmp_path, counts)
    assert plots.save_partition(tmp_path) == tmp_path / "partition.png"
    check_picture(tmp_path / "partition.png")
    [axes] = figures[0].axes
    pieces = np.array([[(bar.get_x(), bar.get_width()) for bar in bars] for bars in axes.containers])
    assert np.array_equal(pieces[:, :, 1].T, counts)
    assert np.array_equal(pieces[:, :, 0].T, counts.cumsum(1) - counts)  # each begins where the one before ends
    assert len({bars[0].get_facecolor() for bars in axes.containers}) == classes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [f"class {i}" for i in range(classes)]
    assert axes.yaxis_inverted()  # client 0 at the top
    assert [text.get_text() for text in axes.get_yticklabels()] == [str(client) for client in range(clients)]


@pytest.mark.parametrize(
    ("clients", "classes"), [(41, 2), (100, 10), (1000, 2), (1000, 10), (1000, 100), (2, 100), (20, 100), (1, 21)]
)
def test_many_clients_or_classes_are_a_heat_map(tmp_path, figures, clients, classes):
    counts = random_counts(clients, classes)
    write_partition(tmp_path, counts)
    check_picture(plots.save_partition(tmp_path))
    sizes, heat, _ = figures[0].axes
    assert np.array_equal(sizes.patches[0].get_data().values, counts.sum(1))
    [image] = heat.images
    shown = image.get_array()
    assert np.array_equal(shown[:: len(shown) // classes], counts.T)
    assert tuple(image.get_extent()) == (-0.5, clients - 0.5, classes - 0.5, -0.5)
    assert image.norm(0) == 0
    assert image.norm(1) > 0
    assert all(axes.get_legend() is None for axes in (sizes, heat))
    labels = [text.get_text() for text in heat.get_yticklabels()]
    assert labels == [f"class {i}" for i in range(classes)] if classes <= 30 else len(labels) < 30


def test_a_crowded_heat_map_does_not_mix_classes(tmp_path):
    counts = np.zeros((3000, 2), int)
    counts[:, 1] = 9
    write_partition(tmp_path, counts)
    with Image.open(plots.save_partition(tmp_path)) as image:
        column = np.asarray(image.convert("L")).astype(int)[:, image.width // 2]
    # Below the grey sizes: the frame's line, a white class, a dark one, nothing in between for more than some pixels.
    heat = column[image.height // 2 : -60]
    assert np.sum((heat > 100) & (heat < 240)) <= 6
    assert np.sum(heat >= 240) > 30
    assert np.sum(heat <= 100) > 30


@pytest.mark.parametrize("clients", [3, 50])
def test_names_of_classes_are_shown_as_they_are(tmp_path, figures, clients, recwarn):
    names = ["_background", "$a and $b", "{", "a name that is much too long to be shown"]
    write_partition(tmp_path, random_counts(clients, 4), names)
    check_picture(plots.save_partition(tmp_path))
    first, *others = figures[0].axes
    texts = others[0].get_yticklabels() if others else first.get_legend().get_texts()
    assert [text.get_text() for text in texts] == [*names[:3], "a name that is much too…"]
    assert not any(text.get_parse_math() for text in texts)
    assert [str(warning.message) for warning in recwarn] == []


def test_a_class_that_nobody_has(tmp_path):
    write_partition(tmp_path, [[3, 0], [1, 0]])
    check_picture(plots.save_partition(tmp_path))
