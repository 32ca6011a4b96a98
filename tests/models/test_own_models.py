"""A user's own networks: whole again after training, however they are written, or refused before it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import trained_runs

from sglr_flower.errors import UserError
from sglr_flower.models import cut_index
from sglr_flower.run import assembly, checks, inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.split.loss import binary_cross_entropy, cross_entropy
from sglr_flower.studies.trained import network as trained


def test_a_module_at_two_places_is_there_twice_when_the_network_is_whole_again(tmp_path: Path) -> None:
    trained_runs.run(tmp_path / "run", model="own_models:unnamed", cut="3")
    network = trained.load(tmp_path / "run").network(0)

    assert [type(stage).__name__ for stage in network] == ["Conv2d", "ReLU", "Conv2d", "ReLU", "Flatten", "Linear"]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_a_number_is_a_count_of_stages_also_where_stages_have_numbers_for_names(count: int) -> None:
    config = RunConfig.parse({"model": "own_models:unnamed", "cut": str(count)})

    assert cut_index(assembly.model(config).whole(), config.cut) == count
    assert len(assembly.model(config).client_segment(0)) == count


def test_a_client_segment_that_cannot_be_trained_is_refused() -> None:
    with pytest.raises(UserError, match=r"model = 'own_models:flat_first': its client segment must have a weight that"):
        checks.check(RunConfig.parse({"model": "own_models:flat_first", "cut": "flat"}))


@pytest.mark.parametrize("cut", ["low", "flat"])
def test_a_network_that_views_its_feature_maps_trains_as_it_is_used_to(cut: str, tmp_path: Path) -> None:
    values = {"model": "own_models:viewing", "cut": cut, "num-clients": 2, "samples-per-client": 8}
    config = RunConfig.parse({**values, "num-server-rounds": 1, "evaluate-samples": 10, "run-dir": str(tmp_path / "r")})
    assert assembly.model(config).memory_format() == torch.contiguous_format
    assert inprocess.run(config)["steps"] == 1


def test_a_diverged_network_has_no_loss_with_either_loss_function() -> None:
    logits = torch.full((2, 3), torch.nan, requires_grad=True)
    for loss in (cross_entropy, binary_cross_entropy):
        assert loss(logits, torch.tensor([0, 1])).isnan()
