"""The experiments' cells: the paper's setting at full scale, and what the other scales make of it."""

from __future__ import annotations

import statistics

import pytest

from sglr_flower.errors import UserError
from sglr_flower.split import splitlr
from sglr_flower.split.methods import METHODS
from sglr_flower.studies.paper.cells import select
from sglr_flower.studies.paper.experiments import EXPERIMENTS
from sglr_flower.studies.paper.scales import SCALES

FULL, SMALL, SMOKE = SCALES["full"], SCALES["small"], SCALES["smoke"]


def test_names_are_unique_and_labels_agree_with_the_settings() -> None:
    """That all configs parse shows in that cells can be made at all."""
    for experiment in EXPERIMENTS.values():
        for scale in SCALES.values():
            cells = experiment.cells(scale, [0, 1])
            assert len({cell.name for cell in cells}) == len(cells)
            for cell in cells:
                assert cell.config.method == cell.labels["method"]
                assert cell.config.num_clients == cell.labels["clients"]
                assert cell.config.seed == cell.labels["seed"]
                assert cell.config.splitlr_alpha == cell.labels.get("alpha", cell.config.splitlr_alpha)
                assert cell.config.splitavg_phi == cell.labels.get("phi", cell.config.splitavg_phi)


def test_full_is_the_papers_setting() -> None:
    for experiment in EXPERIMENTS.values():
        for config in (cell.config for cell in experiment.cells(FULL, [0])):
            assert (config.dataset, config.partition, config.samples_per_client) == ("fashion-mnist", "balanced", 1000)
            assert (config.batch_size, config.num_server_rounds, config.local_epochs) == (8, 250, 1)
            assert (config.optimizer, config.client_lr) == ("adam", 1e-3)
            assert config.lr_schedule == "step" or experiment.name == "cycles"
            assert (config.evaluate_every, config.evaluate_samples) == (10, 2500)
            assert config.model == ("alexnet" if experiment.name == "table4" else "resnet16")


def test_small_is_the_papers_setting_with_less_data_fewer_rounds_and_fewer_evaluations() -> None:
    for experiment in EXPERIMENTS.values():
        curves = experiment.name in ("fig2", "fig3")
        full = {cell.name: cell.config.values() for cell in experiment.cells(FULL, [0])}
        for cell in experiment.cells(SMALL, [0]):
            there = full[cell.name]
            changed = {key for key, value in cell.config.values().items() if value != there[key]}
            assert changed == {"samples-per-client", "num-server-rounds", "evaluate-every", "evaluate-samples"}
            assert cell.config.samples_per_client < 1000
            assert cell.config.num_server_rounds == 15
            assert cell.config.evaluate_every == (1 if curves else 0)


def test_short_is_the_papers_data_for_fewer_rounds() -> None:
    """Clients, samples and test images are the paper's; what is scored in each round is scored on fewer images."""
    rounds = {"num-server-rounds", "evaluate-every"}
    for name in ("table1", "table2", "table3", "methods", "fig2", "fig3"):
        full = {cell.name: cell.config.values() for cell in EXPERIMENTS[name].cells(FULL, [0])}
        for cell in EXPERIMENTS[name].cells(SCALES["short"], [0]):
            changed = {key for key, value in cell.config.values().items() if value != full[cell.name][key]}
            assert changed == (rounds | {"evaluate-samples"} if name.startswith("fig") else rounds)
            assert cell.labels["clients"] in ((6,) if name.startswith("fig") else (10, 20))
            assert cell.config.num_server_rounds == 15


def test_shared_initial_segments_are_all_that_differs_from_the_methods() -> None:
    methods = {cell.config.method: cell.config for cell in EXPERIMENTS["methods"].cells(SCALES["short"], [1])}
    for cell in EXPERIMENTS["initial"].cells(SCALES["short"], [1]):
        assert cell.config == methods[cell.config.method].replace(initial_segments="shared")


@pytest.mark.parametrize(
    ("alpha", "phi", "method"), [("0", "0", "psl"), ("0.5", "0", "slr"), ("0", "0.75", "sgl"), ("1", "0.25", "sglr")]
)
def test_a_cell_of_table_2_is_named_by_which_of_alpha_and_phi_are_0(alpha: str, phi: str, method: str) -> None:
    (cell,) = select(EXPERIMENTS["table2"].cells(FULL, [3]), f"clients=10,alpha={alpha},phi={phi}")
    assert cell.config.method == method
    assert (cell.config.splitlr_alpha, cell.config.splitavg_phi) == (float(alpha), float(phi))
    assert cell.name == f"{method}_clients-10_alpha-{alpha}_phi-{phi}_seed-3"


@pytest.mark.parametrize(
    ("phase", "method", "phi", "config_phase"),
    [("none", "slr", 0.0, "all"), ("always", "sglr", 1.0, "all"), ("last:0.4", "sglr", 1.0, "last:0.4")],
)
def test_table_3_averages_all_clients_while_the_phase_lasts(
    phase: str, method: str, phi: float, config_phase: str
) -> None:
    (cell,) = select(EXPERIMENTS["table3"].cells(FULL, [0]), f"clients=15,phase={phase}")
    config = cell.config
    assert (config.method, config.splitlr_alpha) == (method, 1.0)
    assert (config.splitavg_phi, config.splitavg_phase) == (phi, config_phase)


def test_the_papers_number_beside_a_cell_is_that_cells() -> None:
    def number(experiment: str, only: str) -> float | None:
        (cell,) = select(EXPERIMENTS[experiment].cells(FULL, [0]), only)
        return EXPERIMENTS[experiment].paper(cell.labels)

    assert number("table1", "clients=10,alpha=2") == 34.37
    assert number("table2", "clients=20,alpha=0.5,phi=0.5") == 87.48
    assert number("table3", "clients=20,phase=always") == 60.67
    assert number("table4", "method=fedavg") == 89.7
    assert number("fig2", "alpha=1.5") == 84.21
    assert number("fig3", "phi=1") is None
    assert number("table5", "phi=0.75") == 0.2296
    assert number("fig4", "phi=0.5") == 84.02
    assert number("methods", "method=sglr,clients=10") == 85.22
    assert number("methods", "method=slr,clients=20") == 86.25
    assert number("methods", "method=fedavg,clients=20") is None


def test_cycles_compares_schedules_of_the_same_mean_rate() -> None:
    cells = EXPERIMENTS["cycles"].cells(FULL, [0])
    mean = {}
    for cell in select(cells, "clients=20"):
        server = cell.config.server_lr_schedule or cell.config.lr_schedule
        sides = [splitlr.schedule(text, 250) for text in (cell.config.lr_schedule, server)]
        factors = [[side(step / 125) for step in range(250 * 125)] for side in sides]
        mean[cell.labels["schedule"]] = [statistics.fmean(side) for side in factors]
        opposed = factors[0][0] != factors[1][0]
        assert opposed == (cell.labels["schedule"] == "cyclic-out-of-phase")
    for schedule in ("constant", "cyclic-in-phase", "cyclic-out-of-phase", "one-cycle"):
        assert mean[schedule] == pytest.approx([1, 1], abs=1e-3)
    assert (mean["step"], mean["cosine"]) == (pytest.approx([0.82] * 2), pytest.approx([0.5] * 2, abs=0.01))
    assert [EXPERIMENTS["cycles"].paper(cell.labels) for cell in select(cells, "schedule=step")] == [85.22, 87.48]
    assert EXPERIMENTS["cycles"].paper(select(cells, "schedule=one-cycle")[0].labels) is None


def test_a_codec_is_of_both_directions_or_each_has_its_own() -> None:
    cells = EXPERIMENTS["codecs"].cells(SMALL, [0])
    wires = {str(cell.labels["codec"]): (cell.config.wire_up, cell.config.wire_down) for cell in cells}
    assert wires["int8"] == ("int8", "int8")
    assert wires["none+int8"] == ("none", "int8")
    assert wires["randtopk:0.1:0.1+topk:0.1"] == ("randtopk:0.1:0.1", "topk:0.1")
    assert len({cell.name for cell in cells}) == len(cells) == 11


def test_table_5_and_figure_4_are_of_the_same_runs() -> None:
    table, figure = (EXPERIMENTS[name].cells(FULL, [0, 1]) for name in ("table5", "fig4"))
    assert [(cell.name, cell.config) for cell in table] == [(cell.name, cell.config) for cell in figure]
    assert [cell.labels["phi"] for cell in table[:5]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert all(cell.attack and cell.config.num_clients == 6 for cell in table)
    assert not any(cell.attack for cell in figure)


def test_methods_has_every_method() -> None:
    assert [cell.config.method for cell in EXPERIMENTS["methods"].cells(SMALL, [0])] == list(METHODS)


def test_only_takes_alternatives_and_several_labels() -> None:
    cells = select(EXPERIMENTS["table1"].cells(FULL, [0, 1]), "clients=10|20, alpha=1.0, seed=1")
    assert [cell.name for cell in cells] == ["slr_clients-10_alpha-1_seed-1", "slr_clients-20_alpha-1_seed-1"]


def test_only_of_nothing_is_everything() -> None:
    cells = EXPERIMENTS["table1"].cells(SMOKE, [0])
    assert select(cells, "") == cells


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("clients", "--only 'clients' must have the form key=value or key=value|value"),
        ("rounds=3", "--only 'rounds=3': there is no label 'rounds'; the labels are method, clients, alpha, seed"),
        ("alpha=1,clients=3|2", "--only 'clients=3|2': there is no cell with '3'; there are 2, 4"),
        ("method=sglr", "--only 'method=sglr': there is no cell with 'sglr'; there are psl, slr"),
        (
            "method=psl,alpha=1",
            "--only 'method=psl,alpha=1' leaves no cell; there are combinations of method: psl, slr; clients: 2, 4; "
            "alpha: 0, 1; seed: 0",
        ),
    ],
)
def test_a_wrong_filter_is_a_sentence_that_lists_what_there_is(expression: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        select(EXPERIMENTS["table1"].cells(SMOKE, [0]), expression)
    assert str(error.value) == sentence
