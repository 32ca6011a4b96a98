"""Codecs applied to the messages of a step, on both sides of the cut and whatever carries them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from sglr_flower.seeds import generator
from sglr_flower.split import codecs
from sglr_flower.split.codecs import Codec, Coded, Form
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.plan import RoundPlan


def coded_upload(plan: RoundPlan, upload: Upload) -> Upload:
    """A training upload as it travels; the same one without codecs."""
    if plan.up.off and plan.down.off:
        return upload
    shape, dtype = tuple(upload.smashed.shape[1:]), upload.smashed.dtype
    draws = _draws(plan, plan.up, "up", upload.step, upload.clients, upload.sizes)
    coded = codecs.encode(plan.up, upload.smashed, draws)
    return replace(_with_smashed(upload, coded), answer=Form(plan.down, shape, dtype))


def coded_chunk(codec: Codec, upload: Upload) -> Upload:
    """An evaluation's upload as it travels."""
    return upload if codec.off else _with_smashed(upload, codecs.encode(codec.scoring(), upload.smashed))


def smashed(upload: Upload, dtype: torch.dtype) -> Tensor:
    """The smashed data of an upload, (samples, *cut shape); in ``dtype`` where they travelled in another."""
    return _decoded(upload.smashed, "smashed", upload.aside, dtype)


def sent(upload: Upload) -> Tensor:
    """Which of the smashed data travelled by a sparse codec, 1 or 0 (samples, *cut shape)."""
    return codecs.sent(Coded(upload.smashed, part(upload.aside, "smashed")))


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
            common = codecs.encode(plan.down, download.average, draw)
        own = None
        if download.own is not None:
            draws = _draws(plan, plan.down, "down", step, list(sizes), list(sizes.values()))
            own = codecs.encode(plan.down, download.own, draws)
        average = common if download.average is not None else None
        coded[node] = replace(
            download,
            average=None if average is None else average.values,
            own=None if own is None else own.values,
            aside={**_named("average", average), **_named("own", own)},
        )
    return coded


def gradients(download: Download, dtype: torch.dtype) -> Download:
    """An answer with its cut gradients as they are computed with; the same tensors where they travelled so."""
    average, own = (
        None if tensor is None else _decoded(tensor, name, download.aside, dtype)
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
        return codecs.decode(codecs.encode(self.codec, smashed), smashed.dtype, smashed.shape[1:])


def _decoded(values: Tensor, name: str, aside: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    if not aside and values.dtype in (torch.float32, torch.float64):
        return values  # as it was computed
    return codecs.decode(Coded(values, part(aside, name)), dtype)


def _named(name: str, coded: Coded | None) -> dict[str, Tensor]:
    return {} if coded is None else {f"{name}.{key}": tensor for key, tensor in coded.aside.items()}


def _with_smashed(upload: Upload, coded: Coded) -> Upload:
    return replace(upload, smashed=coded.values, aside=_named("smashed", coded))


def _draws(
    plan: RoundPlan, codec: Codec, way: str, step: int, names: Sequence[int | str], sizes: Sequence[int]
) -> list[tuple[torch.Generator, int]]:
    """A named draw for every client's samples, or the average's positions."""
    if codec.kind != "randtopk":
        return []
    return [
        (generator(plan.seed, f"wire-{way}", name, plan.server_round, step), size)
        for name, size in zip(names, sizes, strict=True)
    ]
