"""Codecs applied to the messages of a step, on both sides of the cut and whatever carries them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from sglr_flower.seeds import generator
from sglr_flower.split.codecs import Codec, Coded, Form
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.plan import RoundPlan


def coded_upload(plan: RoundPlan, upload: Upload) -> Upload:
    """A training upload as it travels; the same one without codecs."""
    if plan.up.off and plan.down.off:
        return upload
    shape, dtype = tuple(upload.smashed.shape[1:]), upload.smashed.dtype
    draws = _draws(plan, plan.up, "up", upload.step, upload.clients, upload.sizes)
    coded = _encoded(plan.up, upload.smashed, draws)
    return replace(_with_smashed(upload, coded), answer=Form(plan.down, shape, dtype))


def coded_chunk(codec: Codec, upload: Upload) -> Upload:
    """An evaluation's upload as it travels."""
    return upload if codec.off else _with_smashed(upload, _encoded(codec.scoring(), upload.smashed))


def smashed(codec: Codec, upload: Upload, dtype: torch.dtype) -> Tensor:
    """The smashed data of an upload, (samples, *cut shape); in ``dtype`` where they travelled in another."""
    return _decoded(codec, upload.smashed, "smashed", upload.aside, dtype)


def sent(codec: Codec, upload: Upload) -> Tensor:
    """Which of the smashed data travelled by a sparse codec, 1 or 0 (samples, *cut shape)."""
    return codec.sent(*_received(upload.smashed, "smashed", upload.aside))


def coded_downloads(
    plan: RoundPlan, step: int, uploads: Mapping[int, Upload], downloads: Mapping[int, Download]
) -> dict[int, Download]:
    """The answers to a step's uploads as they travel; the average, which is the same for all, is coded once."""
    if plan.down.off:
        return dict(downloads)
    common: Coded | None = None
    coded = {}
    for node, download in downloads.items():
        sizes = dict(zip(uploads[node].clients, uploads[node].sizes, strict=True))
        for client in download.active:
            del sizes[client]
        if download.average is not None and common is None:
            draw = _draws(plan, plan.down, "down", step, ["average"], [len(download.average)])
            common = _encoded(plan.down, download.average, draw)
        own = None
        if download.own is not None:
            draws = _draws(plan, plan.down, "down", step, list(sizes), list(sizes.values()))
            own = _encoded(plan.down, download.own, draws)
        average = common if download.average is not None else None
        coded[node] = replace(
            download,
            average=None if average is None else average.values,
            own=None if own is None else own.values,
            aside={**_named("average", average), **_named("own", own)},
        )
    return coded


def gradients(codec: Codec, download: Download, dtype: torch.dtype) -> Download:
    """An answer with its cut gradients as they are computed with; the same tensors where they travelled so."""
    average, own = (
        None if tensor is None else _decoded(codec, tensor, name, download.aside, dtype)
        for name, tensor in (("average", download.average), ("own", download.own))
    )
    return replace(download, average=average, own=own, aside={})


def part(aside: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """What goes with the tensor of that name."""
    start = f"{name}."
    return {key.removeprefix(start): tensor for key, tensor in aside.items() if key.startswith(start)}


class Wire(nn.Module):
    """The codec between the segments of a trained network, as its accuracy was scored with it."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec.scoring()

    def forward(self, smashed: Tensor) -> Tensor:
        """What the server would compute with."""
        return self.codec.decode(self.codec.encode(smashed), tuple(smashed.shape[1:]), smashed.dtype)


def _encoded(codec: Codec, tensor: Tensor, draws: Sequence[tuple[torch.Generator, int]] = ()) -> Coded:
    coded = codec.encode(tensor, draws)
    if not codec.sends_shape or "shape" in coded.aside:
        return coded
    return Coded(coded.values, {**coded.aside, "shape": torch.tensor(tensor.shape[1:], dtype=torch.int64)})


def _decoded(codec: Codec, values: Tensor, name: str, aside: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    if codec.off and values.dtype in (torch.float32, torch.float64):
        return values  # as it was computed
    return codec.decode(*_received(values, name, aside), dtype)


def _received(values: Tensor, name: str, aside: Mapping[str, Tensor]) -> tuple[Coded, tuple[int, ...]]:
    """A coded tensor, and the shape of one sample of what it is decoded to."""
    beside = part(aside, name)
    shape = beside["shape"].tolist() if "shape" in beside else values.shape[1:]
    return Coded(values, beside), tuple(shape)


def _named(name: str, coded: Coded | None) -> dict[str, Tensor]:
    return {} if coded is None else {f"{name}.{key}": tensor for key, tensor in coded.aside.items()}


def _with_smashed(upload: Upload, coded: Coded) -> Upload:
    return replace(upload, smashed=coded.values, aside=_named("smashed", coded))


def _draws(
    plan: RoundPlan, codec: Codec, way: str, step: int, names: Sequence[int | str], sizes: Sequence[int]
) -> list[tuple[torch.Generator, int]]:
    """A named draw for every client's samples, or the average's positions."""
    if not codec.random:
        return []
    return [
        (generator(plan.seed, f"wire-{way}", name, plan.server_round, step), size)
        for name, size in zip(names, sizes, strict=True)
    ]
