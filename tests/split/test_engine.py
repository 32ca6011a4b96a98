"""The engine's pieces on tiny networks: the server's step, recomputation, ragged batches, evaluation."""

from __future__ import annotations

from dataclasses import replace

import plans
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from sglr_flower.data.samples import Batch
from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig
from sglr_flower.split.codecs import OFF
from sglr_flower.split.cohort import Cohort
from sglr_flower.split.loss import binary_cross_entropy, cross_entropy
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.optimizers import ADAM, SGD, OptimizerFactory
from sglr_flower.split.plan import draw_participants
from sglr_flower.split.rounds import (
    EvaluateSession,
    LocalLink,
    TrainSession,
    evaluate_round,
    train_round,
)
from sglr_flower.split.server import ServerSegment, distribute
from sglr_flower.split.splitavg import num_active

PLAN = replace(plans.PLAN, batch_size=2)


def images(count: int, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, 4, 4), generator=draw, dtype=torch.uint8)
    return Batch(pixels, torch.randint(0, 3, (count,), generator=draw))


def segment(client: int = 0) -> nn.Module:
    torch.manual_seed(client)
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.3)).double()


def cohort(sizes: dict[int, int], optimizer: OptimizerFactory = SGD, **options) -> Cohort:
    return Cohort({i: images(n, i) for i, n in sizes.items()}, segment, optimizer, torch.float64, **options)


def server_segment() -> ServerSegment:
    torch.manual_seed(9)
    return ServerSegment(nn.Sequential(nn.Flatten(), nn.Linear(8, 3)).double(), SGD)


def weights(trained: Cohort) -> dict[str, torch.Tensor]:
    return {f"{i}.{k}": v.clone() for i in trained.clients for k, v in trained.state(i).items()}


def upload(clients: tuple[int, ...], sizes: tuple[int, ...], smashed: torch.Tensor) -> Upload:
    return Upload(1, 0, "train", clients, sizes, smashed, torch.zeros(len(smashed), dtype=torch.long), last=False)


def test_a_clients_own_gradient_is_that_of_its_own_batch_mean() -> None:
    smashed = torch.randn(5, 2, 2, 2, dtype=torch.float64)
    server = server_segment()
    alone = smashed[2:].clone().requires_grad_()
    cross_entropy(server.segment(alone), torch.zeros(3, dtype=torch.long)).backward()

    downloads, _ = server.step(PLAN, {7: upload((0, 1), (2, 3), smashed)})

    assert_close(downloads[7].own[2:], alone.grad)


def test_the_joint_scale_is_a_cth_of_the_own_scale_with_equal_batches() -> None:
    smashed = torch.randn(4, 2, 2, 2, dtype=torch.float64)
    own, _ = server_segment().step(PLAN, {7: upload((0, 1), (2, 2), smashed)})
    joint, _ = server_segment().step(replace(PLAN, gradient_scale="joint"), {7: upload((0, 1), (2, 2), smashed)})

    assert_close(own[7].own, 2 * joint[7].own)


def test_the_server_concatenates_in_client_order_whatever_the_nodes() -> None:
    smashed = torch.randn(6, 2, 2, 2, dtype=torch.float64)
    one, two = server_segment(), server_segment()
    one.step(PLAN, {7: upload((0, 1, 2), (2, 2, 2), smashed)})
    # Node 8 hosts clients 0 and 2, node 5 client 1.
    two.step(
        PLAN, {8: upload((0, 2), (2, 2), torch.cat([smashed[:2], smashed[4:]])), 5: upload((1,), (2,), smashed[2:4])}
    )

    assert_close(one.state(), two.state(), rtol=0, atol=0)


def test_every_node_gets_the_average_once_and_the_others_their_own() -> None:
    gradients = {i: torch.full((2, 1), float(i)) for i in range(4)}
    uploads = {8: upload((0, 1), (2, 2), torch.zeros(4, 1)), 9: upload((2, 3), (2, 2), torch.zeros(4, 1))}

    downloads = distribute(replace(PLAN, phi=0.5, seed=4), 0, uploads, gradients)

    active = downloads[8].active + downloads[9].active
    assert len(active) == 2
    for node, clients in ((8, (0, 1)), (9, (2, 3))):
        here = [i for i in clients if i in active]
        others = [i for i in clients if i not in active]
        assert (downloads[node].average is not None) == bool(here)
        if here:
            assert_close(downloads[node].average, torch.full((2, 1), sum(active) / 2))
        own = downloads[node].own
        assert ([] if own is None else own[::2, 0].tolist()) == [float(i) for i in others]


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    phi=st.floats(0, 1),
    step=st.integers(0, 1000),
    split_at=st.integers(0, 6),
)
def test_active_clients_all_get_the_same_and_the_others_their_own(sizes, phi, step, split_at) -> None:
    gradients = {i: torch.full((size, 2), float(i + 1)) for i, size in enumerate(sizes)}
    hosted = {7: tuple(gradients)[:split_at], 8: tuple(gradients)[split_at:]}
    uploads = {
        node: upload(clients, tuple(sizes[i] for i in clients), torch.zeros(sum(sizes[i] for i in clients), 2))
        for node, clients in hosted.items()
        if clients
    }

    downloads = distribute(replace(PLAN, phi=phi), step, uploads, gradients)

    active = [i for download in downloads.values() for i in download.active]
    assert len(active) == num_active(phi, len(sizes))
    averages = [download.average for download in downloads.values() if download.average is not None]
    assert all(torch.equal(average, averages[0]) for average in averages)
    for node, download in downloads.items():
        own = torch.cat([gradients[i] for i in hosted[node] if i not in active] or [torch.zeros(0, 2)])
        assert torch.equal(own if download.own is None else download.own, own)
    if phi == 0:
        assert not averages


def test_recomputing_a_forward_moves_neither_batch_norm_nor_random_numbers() -> None:
    straight, interrupted = cohort({0: 4}), cohort({0: 4})
    download = Download(1, 0, own=torch.randn(2, 2, 2, 2, dtype=torch.float64))
    session = TrainSession(straight, PLAN)
    first = session.start()
    session.advance(download)

    again = TrainSession(interrupted, PLAN)
    assert_close(again.start().smashed, first.smashed)
    later = TrainSession(interrupted, PLAN)  # another process: the graph of the forward is gone
    later.restore(0)
    later.advance(download)

    assert_close(weights(interrupted), weights(straight), rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=str)
def test_recomputing_every_forward_gives_the_same_weights_and_keeps_no_graph(optimizer: OptimizerFactory) -> None:
    straight, thrifty = cohort({0: 5, 1: 3}, optimizer), cohort({0: 5, 1: 3}, optimizer, recompute=True)
    for trained in (straight, thrifty):
        train_round(server_segment(), PLAN, LocalLink({0: TrainSession(trained, PLAN)}))
    assert_close(weights(thrifty), weights(straight), rtol=0, atol=0)

    saved: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        TrainSession(cohort({0: 4}, recompute=True), PLAN).start()
    assert not saved


def test_recomputing_starts_from_the_buffers_of_the_first_forward() -> None:
    """Spectral norm reads in its forward the vector that it moves there."""

    def build(client: int) -> nn.Module:
        torch.manual_seed(client)
        return torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 2, 3)).double()

    ends = []
    for recompute in (False, True):
        trained = Cohort({0: images(6)}, build, SGD, torch.float64, recompute=recompute)
        train_round(server_segment(), PLAN, LocalLink({0: TrainSession(trained, PLAN)}))
        ends.append(weights(trained))
    assert_close(ends[1], ends[0], rtol=0, atol=0)


@pytest.mark.parametrize("way", ["recompute", "restored"])
def test_a_batch_norm_at_two_places_moves_as_often_as_in_one_process(way: str) -> None:
    """A forward that is made again moves copies, whatever names a module has."""

    def build(client: int) -> nn.Module:
        torch.manual_seed(client)
        norm = nn.BatchNorm2d(3)
        return nn.Sequential(nn.Conv2d(3, 3, 3), norm, nn.Tanh(), nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 1), norm).double()

    def server() -> ServerSegment:
        torch.manual_seed(9)
        return ServerSegment(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)).double(), SGD)

    straight = Cohort({0: images(6)}, build, SGD, torch.float64)
    train_round(server(), PLAN, LocalLink({0: TrainSession(straight, PLAN)}))
    other, upper = Cohort({0: images(6)}, build, SGD, torch.float64, recompute=way == "recompute"), server()
    if way == "recompute":
        train_round(upper, PLAN, LocalLink({0: TrainSession(other, PLAN)}))
    else:
        upper.begin(PLAN)
        upload: Upload | None = TrainSession(other, PLAN).start()
        while upload is not None:
            later = TrainSession(other, PLAN)
            later.restore(upload.step)
            upload = later.advance(upper.step(PLAN, {0: upload})[0][0])
    assert_close(weights(other), weights(straight), rtol=0, atol=0)


def test_channels_last_trains_as_the_usual_order_in_memory() -> None:
    config = RunConfig.parse({"num-clients": 2, "samples-per-client": 16, "image-size": 32})
    plan, model = replace(PLAN, clients=(0, 1), batch_size=8, client_lr=1e-3, phi=0.5), assembly.model(config)
    assert model.memory_format() == torch.channels_last
    # Noise and not digits: of these most pixels are the same, so that one rounding can put many of them across a zero.
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 16, 1, 32, 32), generator=draw, dtype=torch.uint8)
    data = {client: Batch(pixels[client], torch.arange(16) % 10) for client in (0, 1)}
    ends, start = [], {}
    for memory_format in (torch.contiguous_format, torch.channels_last):
        trained = Cohort(data, model.client_segment, SGD, memory_format=memory_format)
        server = ServerSegment(model.server_segment(), SGD, memory_format=memory_format)
        start = weights(trained) | {name: tensor.clone() for name, tensor in server.state().items()}
        train_round(server, plan, LocalLink({0: TrainSession(trained, plan)}))
        ends.append(weights(trained) | {name: tensor.clone() for name, tensor in server.state().items()})
    for name in (name for name in start if name.endswith("weight")):
        moved = (ends[0][name] - start[name]).norm()
        assert (ends[1][name] - ends[0][name]).norm() < 0.02 * moved, name


def test_of_clients_that_never_train_nothing_is_made() -> None:
    made: list[int] = []

    def build(client: int) -> nn.Module:
        made.append(client)
        return segment(client)

    trained = cohort({0: 4, 1: 4, 2: 4})
    earlier = {2: {name: tensor.clone() for name, tensor in trained.state(2).items()}}
    lazy = Cohort({i: images(4, i) for i in range(3)}, build, SGD, torch.float64, states=earlier)
    train_round(server_segment(), plan := replace(PLAN, clients=(1,)), LocalLink({0: TrainSession(lazy, plan)}))

    assert made == [1]
    assert set(lazy.states()) == {1, 2}
    assert_close(lazy.state(2), earlier[2], rtol=0, atol=0)
    lazy.state(0)
    assert set(lazy.states()) == {1, 2}  # looking at the initial one keeps nothing
    assert_close(dict(lazy.segments[0].state_dict()), dict(segment(0).state_dict()), rtol=0, atol=0)


def test_clients_of_different_sizes_leave_the_steps_when_their_batches_are_used_up() -> None:
    trained = cohort({0: 5, 1: 1, 2: 2})
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    class Watching(LocalLink):
        def receive(self):
            uploads = super().receive()
            seen.extend((u.clients, u.sizes) for u in uploads.values())
            return uploads

    result = train_round(server_segment(), PLAN, Watching({0: TrainSession(trained, PLAN)}))

    assert seen == [((0, 1, 2), (2, 1, 2)), ((0,), (2,)), ((0,), (1,))]
    assert (result.steps, result.samples) == (3, 8)


def test_every_epoch_uses_every_sample_once() -> None:
    plan = replace(PLAN, local_epochs=3, batch_size=4)
    batches = plan.batches(0, 10)
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    for epoch in range(3):
        assert sorted(torch.cat(batches[3 * epoch : 3 * epoch + 3]).tolist()) == list(range(10))
    assert not torch.equal(torch.cat(batches[:3]), torch.cat(batches[3:6]))


def test_the_order_drawn_once_is_the_same_in_every_epoch() -> None:
    plan = replace(PLAN, local_epochs=2, reshuffle=False)
    batches = plan.batches(0, 6)
    later = replace(plan, server_round=5).batches(0, 6)
    assert_close(torch.cat(batches[:3]), torch.cat(batches[3:]))
    assert_close(torch.cat(batches), torch.cat(later))


def test_binary_cross_entropy_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1]]))
    expected = -(torch.tensor(0.7).log() + torch.tensor(0.8).log() + torch.tensor(0.9).log()) / 3
    assert_close(binary_cross_entropy(logits, torch.tensor([0])), expected)


def test_participants_are_drawn_by_fraction_and_differ_between_rounds() -> None:
    rounds = [draw_participants(0, r, 20, 0.25) for r in range(1, 40)]
    assert {len(clients) for clients in rounds} == {5}
    assert len(set(rounds)) > 30
    assert set().union(*rounds) == set(range(20))
    assert draw_participants(0, 1, 3, 0.01) != ()


def test_idle_clients_do_not_move() -> None:
    trained = cohort({0: 4, 1: 4})
    before = weights(trained)
    train_round(server_segment(), plan := replace(PLAN, clients=(1,)), LocalLink({0: TrainSession(trained, plan)}))
    after = weights(trained)

    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("0."))
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("1."))


def test_evaluation_counts_by_hand() -> None:
    trained, server = cohort({0: 2, 1: 2}), server_segment()
    held_out = {"validation": images(7, 50), "test": images(5, 51)}
    before = weights(trained)

    session = EvaluateSession(trained.segments, torch.float64, 1, held_out)
    scores = evaluate_round(server, LocalLink({0: session}), OFF)

    assert_close(weights(trained), before, rtol=0, atol=0)
    for client, score in scores.items():
        inputs = held_out["test"].images.double().repeat(1, 3, 1, 1) / 127.5 - 1
        with torch.no_grad():
            logits = server.segment.eval()(trained.segments[client].eval()(inputs))
        assert score.test.score == int((logits.argmax(1) == held_out["test"].labels).sum())
        assert (score.test.samples, score.validation.samples) == (5, 7)
        assert score.test.mean_loss == pytest.approx(
            float(nn.functional.cross_entropy(logits, held_out["test"].labels))
        )
