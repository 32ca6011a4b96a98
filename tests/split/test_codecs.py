"""Codecs: arrays by hand, error bounds for any numbers, bytes, and the chance of the random tail."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from sglr_flower.split import codecs
from sglr_flower.split.codecs import Codec, Coded, Form, parse
from sglr_flower.split.codecs.sparse import TopK

ALL = ("none", "bfloat16", "float16", "int8", "int8-channel", "topk:0.25", "randtopk:0.25:0.1")
unhurried = settings(deadline=None)  # torch's first call of a kind takes its time on a busy machine
SHAPES = [(7,), (3, 4), (2, 3, 3), (1, 1, 1), (5, 1, 2)]


def numbers(shape: tuple[int, ...], seed: int, spread: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values whose magnitudes lie ``spread`` powers of ten apart, zeros among them."""
    draw = torch.Generator().manual_seed(seed)
    exponent = spread * (torch.rand(shape, generator=draw, dtype=torch.float64) - 0.5)
    values = torch.randn(shape, generator=draw, dtype=torch.float64) * 10**exponent
    return (values * (torch.rand(shape, generator=draw) > 0.2)).to(dtype)


def encode(codec: Codec, tensor: Tensor, draws: Sequence[tuple[torch.Generator, int]] = ()) -> Coded:
    return codec.encode(tensor, draws)


def reader(coded: Coded) -> tuple[Codec, tuple[int, ...]]:
    """A coded tensor says by itself how it is read: its codec, and the shape of a sample."""
    if "positions" in coded.aside:
        return parse("topk:0.5"), tuple(coded.aside["shape"].tolist())
    return parse("int8" if "scale" in coded.aside else "none"), tuple(coded.values.shape[1:])


def decode(coded: Coded, dtype: torch.dtype) -> Tensor:
    codec, shape = reader(coded)
    return codec.decode(coded, shape, dtype)


def sent(coded: Coded) -> Tensor:
    codec, shape = reader(coded)
    return codec.sent(coded, shape)


def draws(codec: Codec, samples: int, seed: int = 0) -> list[tuple[torch.Generator, int]]:
    return [(torch.Generator().manual_seed(seed), samples)] if codec.random else []


tensors = st.builds(
    numbers,
    st.builds(lambda samples, shape: (samples, *shape), st.integers(1, 5), st.sampled_from(SHAPES)),
    st.integers(0, 2**31),
    st.floats(0, 8),
)


def test_none_is_the_same_tensor() -> None:
    tensor = torch.randn(3, 2)
    assert encode(codecs.OFF, tensor).values is tensor


@unhurried
@given(tensors)
def test_bfloat16_is_near_by_its_eight_bits(tensor: Tensor) -> None:
    back = decode(encode(parse("bfloat16"), tensor), tensor.dtype)
    assert ((back - tensor).abs() <= 2.0**-8 * tensor.abs()).all()


@unhurried
@given(tensors)
def test_float16_is_near_by_its_eleven_bits_and_ends_at_its_largest(tensor: Tensor) -> None:
    back = decode(encode(parse("float16"), tensor), tensor.dtype)
    cut = tensor.clamp(-65504, 65504)
    assert ((back - cut).abs() <= 2.0**-11 * cut.abs() + 2.0**-25).all()
    assert back.isfinite().all()


@unhurried
@given(tensors, st.sampled_from(["int8", "int8-channel"]))
def test_int8_is_near_by_half_a_scale(tensor: Tensor, kind: str) -> None:
    coded = encode(parse(kind), tensor)
    scale = coded.aside["scale"]
    assert ((decode(coded, tensor.dtype) - tensor).abs() <= scale * (0.5 + 1e-5)).all()
    largest = tensor.abs().flatten(1).max(1).values
    bound = scale.flatten(1).max(1).values
    assert_close(bound, largest / 127)  # of channels the largest one's


@unhurried
@given(tensors, st.floats(0.01, 0.99))
def test_top_k_keeps_the_largest_as_they_are(tensor: Tensor, keep: float) -> None:
    codec = TopK(keep)
    coded = encode(codec, tensor)
    back, flat = decode(coded, tensor.dtype).flatten(1), tensor.flatten(1)
    there = sent(coded).flatten(1).bool()
    assert (there.sum(1) == codec.kept(flat.shape[1])).all()
    assert torch.equal(back, flat * there)
    for row, kept in zip(flat.abs(), there, strict=True):
        assert kept.all() or row[kept].min() >= row[~kept].max()


@unhurried
@given(tensors, st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.integers(0, 99))
def test_the_random_tail_sends_as_many_values_each_as_it_is(
    tensor: Tensor, keep: float, tail: float, seed: int
) -> None:
    codec = TopK(keep, tail)
    coded = encode(codec, tensor, draws(codec, len(tensor), seed))
    positions = coded.aside["positions"].long()
    assert positions.shape[1] == codec.kept(tensor[0].numel())
    assert (positions.diff(dim=1) > 0).all()
    assert torch.equal(tensor.flatten(1).gather(1, positions), coded.values)
    again = encode(codec, tensor, draws(codec, len(tensor), seed))
    assert torch.equal(again.aside["positions"], coded.aside["positions"])


def test_one_draw_is_of_the_tail_with_its_probability_and_even_within_it() -> None:
    samples, tail = 40_000, 0.3
    tensor = torch.arange(10.0).flip(0).expand(samples, 10)  # the largest is the first
    codec = TopK(0.1, tail)
    taken = encode(codec, tensor, draws(codec, samples)).aside["positions"].flatten()
    counts = torch.bincount(taken.long(), minlength=10) / samples
    # Standard deviations: 0.0023, and 0.0009 for each of the tail.
    assert float(counts[0]) == pytest.approx(1 - tail, abs=0.01)
    assert counts[1:].tolist() == pytest.approx([tail / 9] * 9, abs=0.005)


def test_a_sample_comes_out_the_same_in_any_batch() -> None:
    tensor = numbers((6, 2, 3, 3), 1, 4.0)
    for name in ALL:
        codec = parse(name)
        whole = encode(codec, tensor, [*draws(codec, 2, 5), *draws(codec, 4, 6)])
        parts = [encode(codec, tensor[:2], draws(codec, 2, 5)), encode(codec, tensor[2:], draws(codec, 4, 6))]
        joined = torch.cat([decode(part, torch.float32) for part in parts])
        assert torch.equal(decode(whole, torch.float32), joined), name


def test_the_order_in_memory_changes_nothing_and_is_kept() -> None:
    tensor = numbers((2, 4, 3, 5), 2, 2.0)
    last = tensor.contiguous(memory_format=torch.channels_last)
    for name in ("bfloat16", "float16", "int8", "int8-channel", "topk:0.3"):
        plain, other = encode(parse(name), tensor), encode(parse(name), last)
        assert torch.equal(plain.values, other.values), name
        assert torch.equal(decode(plain, torch.float32), decode(other, torch.float32)), name
        if not parse(name).sparse:
            assert other.values.is_contiguous(memory_format=torch.channels_last), name


def test_int8_by_hand() -> None:
    coded = encode(parse("int8"), torch.tensor([[127.0, -63.0, 0.4, 0.6], [0, 0, 0, 0]]))
    assert coded.values.tolist() == [[127, -63, 0, 1], [0, 0, 0, 0]]
    assert coded.values.dtype == torch.int8
    assert coded.aside["scale"].tolist() == [[1.0], [0.0]]
    assert decode(coded, torch.float32).tolist() == [[127.0, -63.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]


def test_int8_of_channels_by_hand() -> None:
    image = torch.tensor([[[[254.0, 2.0]], [[-31.75, 16.0]]]])  # 1 sample, 2 channels, 1 x 2
    coded = encode(parse("int8-channel"), image)
    assert coded.aside["scale"].flatten().tolist() == [2.0, 0.25]
    assert coded.values.flatten().tolist() == [127, 1, -127, 64]
    assert decode(coded, torch.float32).tolist() == image.tolist()
    sequence = torch.tensor([[[127.0, 1.0], [5.0, -254.0]]])  # 1 sample, 2 tokens of 2 channels
    coded = encode(parse("int8-channel"), sequence)
    assert coded.aside["scale"].tolist() == [[[1.0, 2.0]]]
    assert coded.values.tolist() == [[[127, 0], [5, -127]]]  # 1 / 2 is rounded to the even 0


def test_top_k_by_hand() -> None:
    coded = encode(parse("topk:0.5"), torch.tensor([[[0.1, -5.0], [3.0, 0.0]]]))
    assert coded.values.tolist() == [[-5.0, 3.0]]
    assert (coded.aside["positions"].tolist(), coded.aside["positions"].dtype) == ([[1, 2]], torch.int16)
    assert coded.aside["shape"].tolist() == [2, 2]
    assert decode(coded, torch.float32).tolist() == [[[0.0, -5.0], [3.0, 0.0]]]
    assert sent(coded).tolist() == [[[0.0, 1.0], [1.0, 0.0]]]


def test_far_positions_need_more_bits() -> None:
    tensor = torch.zeros(1, (1 << 15) + 1)
    tensor[0, -1] = 1.0
    coded = encode(TopK(1e-5), tensor)
    assert (coded.aside["positions"].tolist(), coded.aside["positions"].dtype) == ([[1 << 15]], torch.int32)
    short = encode(TopK(1e-5), tensor[:, 1:])
    assert (short.aside["positions"].tolist(), short.aside["positions"].dtype) == ([[(1 << 15) - 1]], torch.int16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ALL)
@settings(max_examples=20, deadline=None)
@given(samples=st.integers(1, 4), shape=st.sampled_from(SHAPES))
def test_a_form_says_what_a_coded_tensor_is(
    name: str, dtype: torch.dtype, samples: int, shape: tuple[int, ...]
) -> None:
    codec = parse(name)
    coded = encode(codec, torch.randn(samples, *shape, dtype=dtype), draws(codec, samples))
    form = Form(codec, shape, dtype)
    assert ((tuple(coded.values.shape[1:])), coded.values.dtype) == form.values()
    found = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in coded.aside.items()}
    assert found == form.aside(samples)
    payload = coded.values.nbytes + sum(tensor.nbytes for key, tensor in coded.aside.items() if key != "shape")
    assert payload == samples * form.sample_bytes()
    assert decode(coded, dtype).shape == (samples, *shape)
    assert decode(coded, dtype).dtype == dtype


def test_bytes_of_resnet16s_cut_by_hand() -> None:
    cut, count = (32, 16, 16), 8192
    sizes = {name: Form(parse(name), cut, torch.float32).sample_bytes() for name in ALL}
    assert sizes["none"] == 4 * count
    assert sizes["bfloat16"] == sizes["float16"] == 2 * count
    assert sizes["int8"] == count + 4
    assert sizes["int8-channel"] == count + 32 * 4
    assert sizes["topk:0.25"] == sizes["randtopk:0.25:0.1"] == 2048 * (4 + 2)


@pytest.mark.parametrize("text", ["", "int4", "topk", "topk:0", "topk:1", "topk:nan", "topk:0.1:0.1", "int8:1"])
def test_what_is_no_codec_is_one_sentence(text: str) -> None:
    with pytest.raises(
        ValueError, match="it must be none, bfloat16, float16, int8, int8-channel, topk:F or randtopk:F:A"
    ):
        parse(text)


def test_a_score_is_taken_without_chance() -> None:
    assert parse("randtopk:0.1:0.2").scoring() == parse("topk:0.1")
    assert parse("int8").scoring() == parse("int8")
    assert math.isclose(parse("randtopk:0.1:0.2").tail, 0.2)


@pytest.mark.parametrize("codec", ["bfloat16", "float16"])
def test_what_is_not_finite_is_not_hidden(codec: str) -> None:
    tensor = torch.tensor([[float("inf"), float("nan"), -float("inf"), 1.0]])
    assert torch.equal(decode(encode(parse(codec), tensor), torch.float32).isfinite(), tensor.isfinite())


class Halves(codecs.Codec):
    """Sends the first half of a sample's values."""

    sparse = True

    def parts(self, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"values": ((shape[0] // 2,), dtype)}

    def encode(self, tensor: Tensor, draws: object = ()) -> codecs.Coded:
        return codecs.Coded(tensor[:, : tensor.shape[1] // 2].contiguous())

    def decode(self, coded: codecs.Coded, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.nn.functional.pad(coded.values, (0, shape[0] - coded.values.shape[1]))


class SaidHalves(Halves):
    """Says so too."""

    def sent(self, coded: codecs.Coded, shape: tuple[int, ...]) -> Tensor:
        return self.decode(codecs.Coded(torch.ones_like(coded.values)), shape, coded.values.dtype)


def test_one_that_leaves_values_out_has_to_say_which() -> None:
    assert "has no method sent" in codecs.refusal(Halves(), (6,), torch.float32)
    assert codecs.refusal(SaidHalves(), (6,), torch.float32) == ""
