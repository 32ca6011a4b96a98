"""Codecs in a step: the same whatever the spread over nodes and the cohort's way; the derivative of what is sent."""

from __future__ import annotations

from dataclasses import replace

import plans
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sglr_flower.data.inputs import to_input
from sglr_flower.data.samples import Batch
from sglr_flower.split import codecs, coding
from sglr_flower.split.codecs import Form, parse
from sglr_flower.split.cohort import Cohort
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.optimizers import SGD
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.rounds import EvaluateSession, LocalLink, TrainSession, evaluate_round, train_round
from sglr_flower.split.server import ServerSegment

SHAPE = (2, 2, 2)
PLAN = replace(plans.PLAN, local_epochs=2, batch_size=3, phi=0.67)
SIZES = {0: 7, 1: 6, 2: 4}
CODECS = ("bfloat16", "float16", "int8", "int8-channel", "topk:0.4", "randtopk:0.4:0.2")


Weights = dict[str, torch.Tensor]


def images(count: int, seed: int) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, 4, 4), generator=draw, dtype=torch.uint8)
    return Batch(pixels, torch.randint(0, 3, (count,), generator=draw))


def segment(client: int) -> nn.Module:
    torch.manual_seed(client)
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)).double()


def cohort(clients: tuple[int, ...], **options: bool) -> Cohort:
    data = {client: images(SIZES[client], client) for client in clients}
    return Cohort(data, segment, SGD, torch.float64, **options)


def server_segment() -> ServerSegment:
    torch.manual_seed(9)
    return ServerSegment(nn.Sequential(nn.Flatten(), nn.Linear(8, 3)).double(), SGD)


def trained(plan: RoundPlan, hosted: list[tuple[int, ...]], **options: bool) -> tuple[Weights, LocalLink]:
    """All weights after a round, and the link that it went over."""
    cohorts = [cohort(clients, **options) for clients in hosted]
    server = server_segment()
    link = LocalLink({node: TrainSession(each, plan) for node, each in enumerate(cohorts)})
    train_round(server, plan, link)
    weights = {f"{i}.{k}": v.clone() for each in cohorts for i in each.clients for k, v in each.state(i).items()}
    return {**weights, **server.state()}, link


def same(left: Weights, right: Weights) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert_close(tensor, right[name], rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("way", ["up", "down", "both"])
@pytest.mark.parametrize("name", CODECS)
def test_the_spread_over_nodes_changes_nothing(name: str, way: str) -> None:
    codec = parse(name)
    plan = replace(PLAN, up=codec if way != "down" else codecs.OFF, down=codec if way != "up" else codecs.OFF)
    one, _ = trained(plan, [(0, 1, 2)])
    for hosted in ([(0,), (1,), (2,)], [(1, 2), (0,)]):
        other, _ = trained(plan, hosted)
        same(one, other)
    exact, _ = trained(PLAN, [(0, 1, 2)])
    assert any(not torch.equal(tensor, exact[key]) for key, tensor in one.items())  # the codec is at work


@pytest.mark.parametrize("name", CODECS)
def test_a_stacked_cohort_and_one_that_recomputes_do_the_same(name: str) -> None:
    plan = replace(PLAN, up=parse(name), down=parse(name))
    looped, _ = trained(plan, [(0, 1, 2)])
    for options in ({"stacked": True}, {"recompute": True}):
        other, _ = trained(plan, [(0, 1, 2)], **options)
        same(looped, other)


def test_without_codecs_nothing_is_touched() -> None:
    upload = Upload(1, 0, "train", (0,), (2,), torch.randn(2, *SHAPE), torch.zeros(2, dtype=torch.int64), last=True)
    assert coding.coded_upload(PLAN, upload) is upload
    assert coding.coded_chunk(codecs.OFF, upload) is upload
    assert coding.smashed(codecs.OFF, upload, torch.float32) is upload.smashed
    download = Download(1, 0, (0,), torch.randn(2, *SHAPE), None)
    assert coding.coded_downloads(PLAN, 0, {4: upload}, {4: download})[4] is download
    assert coding.gradients(codecs.OFF, download, torch.float32).average is download.average


@pytest.mark.parametrize("name", CODECS)
def test_bytes_are_those_of_the_form(name: str) -> None:
    plan = replace(PLAN, up=parse(name), down=parse(name), phi=0.0)
    _, link = trained(plan, [(0, 1, 2)])
    sample = Form(parse(name), SHAPE, torch.float64).sample_bytes()
    samples = PLAN.local_epochs * sum(SIZES.values())
    assert (link.sent.smashed, link.sent.unicast, link.sent.labels) == (samples * sample, samples * sample, 8 * samples)


def test_what_was_not_sent_is_not_learnt_from() -> None:
    """The gradient of a client's weights is that of the loss of what the server saw."""
    plan = replace(PLAN, clients=(0,), up=parse("topk:0.4"), phi=0.0)
    here, server = cohort((0,)), server_segment()
    session = TrainSession(here, plan)
    upload = session.start()
    before = {name: tensor.clone() for name, tensor in here.state(0).items()}

    # The same step by hand: the codec as a mask in one graph.
    alone, above = segment(0).train(), server_segment().segment
    batch = plan.batches(0, SIZES[0])[0]
    data = images(SIZES[0], 0).take(batch)
    output = alone(to_input(data.images, torch.float64))
    flat = output.detach().flatten(1).abs()
    mask = torch.zeros_like(flat).scatter_(1, flat.topk(3, 1).indices, 1.0).view_as(output)
    loss = nn.functional.cross_entropy(above(output * mask), data.labels)
    loss.backward()

    downloads, seen = server.step(plan, {0: upload})
    session.advance(downloads[0])
    assert seen == pytest.approx(float(loss.detach()))
    for name, weight in alone.named_parameters():
        assert weight.grad is not None
        expected = before[f"segment.{name}"] - plan.client_lr * weight.grad
        assert_close(here.state(0)[f"segment.{name}"], expected, msg=name)


def test_the_tail_is_drawn_anew_for_each_step_and_client_and_again_the_same() -> None:
    plan = replace(PLAN, up=parse("randtopk:0.4:0.5"))
    smashed = torch.randn(1, *SHAPE).expand(4, *SHAPE)
    upload = Upload(1, 0, "train", (0, 1), (2, 2), smashed, torch.zeros(4, dtype=torch.int64), last=True)

    def positions(other: Upload, round_: int = 1) -> torch.Tensor:
        return coding.coded_upload(replace(plan, server_round=round_), other).aside["smashed.positions"]

    first = positions(upload)
    assert torch.equal(first, positions(upload))
    assert not torch.equal(first[:2], first[2:])
    assert not torch.equal(first, positions(replace(upload, step=1)))
    assert not torch.equal(first, positions(upload, 2))
    assert torch.equal(first[2:], positions(replace(upload, clients=(1,), sizes=(2,), smashed=smashed[2:]))[:2])


def test_an_evaluation_is_scored_on_what_the_codec_makes_of_it() -> None:
    server, segments = server_segment(), {0: segment(0)}
    data = {"validation": images(20, 1), "test": images(30, 2)}

    def loss(name: str) -> float:
        session = EvaluateSession(segments, torch.float64, 1, data, codec=parse(name))
        return evaluate_round(server, LocalLink({0: session}), parse(name))[0].test.mean_loss

    wire = nn.Sequential(segments[0], coding.Wire(parse("topk:0.3")), server.segment).eval()
    with torch.no_grad():
        logits = wire(to_input(data["test"].images, torch.float64))
    expected = float(nn.functional.cross_entropy(logits, data["test"].labels))
    assert loss("topk:0.3") == pytest.approx(expected)
    assert loss("randtopk:0.3:0.5") == loss("topk:0.3")
    assert loss("none") != pytest.approx(expected)
