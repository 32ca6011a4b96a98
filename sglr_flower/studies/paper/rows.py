"""Pictures made of small ones: what an attack reconstructed, and feature maps at the cut, a line for each row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file

from sglr_flower.data.samples import in_memory
from sglr_flower.data.source import subset
from sglr_flower.run import assembly
from sglr_flower.studies.leakage.pictures import Row, as_image, draw_rows, feature_maps
from sglr_flower.studies.leakage.record import EXAMPLES, FOLDER
from sglr_flower.studies.leakage.smashed import smashed
from sglr_flower.studies.paper.cells import text
from sglr_flower.studies.paper.experiment import Experiment, Picture
from sglr_flower.studies.paper.measures import CROSS_ENTROPY
from sglr_flower.studies.paper.results import Result
from sglr_flower.studies.trained import network as trained

_MAPS = 12


def draw(experiment: Experiment, kind: Picture, results: Sequence[Result], title: str) -> bytes:
    """The picture as PNG, of the first seed that has results: of one seed data, client and images are the same.

    Parameters
    ----------
    experiment : Experiment
        Names the rows.
    kind : Picture
        "reconstructions" or "feature maps".
    results : Sequence[Result]
        The finished cells that have run directories; not empty.
    title : str
        Stands above.
    """
    seed = min(int(result.cell.labels["seed"]) for result in results)
    found = [(result, result.directory) for result in results if result.cell.labels["seed"] == seed]
    there = [(result, directory) for result, directory in found if directory]
    rows = _reconstructions(experiment, there) if kind == "reconstructions" else _feature_maps(experiment, there)
    return draw_rows(rows, f"{title}; {kind} of seed {seed}")


def _named(experiment: Experiment, result: Result) -> str:
    label = result.cell.labels[experiment.rows]
    return f"{experiment.rows} {text(label)}" if isinstance(label, float) else text(label)


def _reconstructions(experiment: Experiment, results: Sequence[tuple[Result, Path]]) -> list[Row]:
    """The attacked images, and below them what was made of them with each row's setting and its cross-entropy."""
    examples = [load_file(directory / FOLDER / EXAMPLES) for _, directory in results]
    rows = [Row("original", [as_image(pixels) for pixels in examples[0]["original"]])]
    for (result, _), example in zip(results, examples, strict=True):
        value = CROSS_ENTROPY.value(result.figures)
        name = f"{_named(experiment, result)}\n{value:.{CROSS_ENTROPY.decimals}f}"
        rows.append(Row(name, list(example["reconstructed"])))
    return rows


def _feature_maps(experiment: Experiment, results: Sequence[tuple[Result, Path]]) -> list[Row]:
    """A test image, and the first feature maps that the first client's segment makes of it."""
    rows = []
    for result, directory in results:
        model = trained.load(directory)
        image = in_memory(subset(assembly.splits(model.config).test, 1, model.config.seed)).images
        maps = feature_maps(smashed(model, model.clients[0], image, "shown")[0], _MAPS)
        rows.append(Row(_named(experiment, result), [as_image(image[0]), *maps]))
    return rows
