"""What a frame has to be: every one is checked here before it is used, numbers and sizes before contents.

The server knows what each node has to send in each step, so a check is exact: `TrainCheck` says which clients with how
many samples, `EvaluateCheck` as much as the server can know of a node's samples. A node checks the answers alike
(`check_answer`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from sglr_flower.data.targets import Kind, complaint, sample_bytes
from sglr_flower.exchange.frames import FrameError, few
from sglr_flower.split import coding
from sglr_flower.split.codecs import NOT_FINITE, OFF, Codec, Coded, Form
from sglr_flower.split.finite import all_finite
from sglr_flower.split.messages import Download, Upload
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.rounds import EVALUATION_SAMPLES

FrameCheck = Callable[[Upload], None]
"""Raises FrameError, with a sentence, if an upload is not what its node should send next. One per node and round."""

FRAME_OVERHEAD = 65_536
"""More than a frame has besides its tensors: numbers of clients and sizes, names and shapes."""


def frame_bytes(samples: int, shape: Sequence[int], dtype: torch.dtype, targets: Kind, codec: Codec = OFF) -> int:
    """The size that a frame with that many samples does not exceed, for `StreamServer`'s ``max_frame``.

    Parameters
    ----------
    samples : int
        Of all clients of a node.
    shape : Sequence[int]
        One sample's smashed data (`SplitModel.smashed_shape`).
    dtype : torch.dtype
        Of smashed data.
    targets : Kind
        The source's target type.
    codec : Codec
        How smashed data travel.
    """
    return samples * (Form(codec, tuple(shape), dtype).sample_bytes() + sample_bytes(targets, dtype)) + FRAME_OVERHEAD


class TrainCheck:
    """One node's uploads of one training round, in their order.

    Parameters
    ----------
    plan : RoundPlan
        The round.
    samples : Mapping[int, int]
        The node's clients -> number of their training samples; those that do not take part are passed over.
    shape : tuple[int, ...]
        One sample's smashed data.
    dtype : torch.dtype
        Of smashed data.
    targets : Kind
        The source's target type.
    """

    def __init__(
        self, plan: RoundPlan, samples: Mapping[int, int], shape: tuple[int, ...], dtype: torch.dtype, targets: Kind
    ) -> None:
        self._plan, self._samples = plan, dict(samples)
        self._form, self._targets = Form(plan.up, tuple(shape), dtype), targets
        self._step = 0

    def __call__(self, upload: Upload) -> None:
        """Check the next upload.

        Raises
        ------
        FrameError
            If it is not this step's, or its tensors are not what they should be.
        """
        step = self._step
        _check_place(upload, self._plan.server_round, step, ("train",))
        sizes = self._plan.sizes_at(step, self._samples)
        if not sizes:
            raise FrameError(f"step {step} after the node's last one")
        if upload.clients != tuple(sizes) or upload.sizes != tuple(sizes.values()):
            raise FrameError(
                f"clients {few(upload.clients)} with {few(upload.sizes)} samples in step {step}, "
                f"not {few(tuple(sizes))} with {few(tuple(sizes.values()))}"
            )
        last = not self._plan.sizes_at(step + 1, self._samples)
        if upload.last != last:
            raise FrameError(f"step {step} is {'' if last else 'not '}the node's last one, unlike the frame says")
        _check_tensors(upload, self._form, self._targets)
        self._step += 1


class EvaluateCheck:
    """One node's uploads of one evaluation, in their order: validation samples, then test samples, in chunks.

    Parameters
    ----------
    server_round : int
        After which it is.
    clients : Sequence[int]
        The node's clients; each has smashed data of the same samples.
    shape, dtype, targets
        As in `TrainCheck`.
    samples : int
        Images of a split at most; 0: as many as the node has.
    codec : Codec
        How smashed data travel.
    splits : tuple of str
        Those of the two that the node has samples of.
    """

    def __init__(
        self,
        server_round: int,
        clients: Sequence[int],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        targets: Kind,
        samples: int = 0,
        codec: Codec = OFF,
        splits: tuple[str, ...] = ("validation", "test"),
    ) -> None:
        self._round, self._clients = server_round, tuple(sorted(clients))
        self._form, self._targets = Form(codec.scoring(), tuple(shape), dtype), targets
        self._chunk = max(1, EVALUATION_SAMPLES // len(self._clients))
        self._samples = samples
        self._step, self._split, self._seen, self._all = 0, "", 0, splits
        self._splits = splits[:1]  # what the next chunk may be of

    def __call__(self, upload: Upload) -> None:
        """Check the next upload.

        Raises
        ------
        FrameError
            If it is not the next chunk, or its tensors are not what they should be.
        """
        if not self._splits:
            raise FrameError(f"chunk {upload.step} after the node's last one")
        _check_place(upload, self._round, self._step, self._splits)
        size = upload.sizes[0]
        if upload.clients != self._clients or set(upload.sizes) != {size}:
            raise FrameError(
                f"clients {few(upload.clients)} with {few(upload.sizes)} samples, "
                f"not {few(self._clients)} with the same number each"
            )
        seen = size + (self._seen if upload.split == self._split else 0)
        if size > self._chunk or (self._samples and seen > self._samples):
            raise FrameError(f"{size} samples in a chunk and {seen} {upload.split} samples so far: too many")
        if upload.last and upload.split != self._all[-1]:
            raise FrameError(f"the node's last chunk is of {self._all[-1]} samples")
        _check_tensors(upload, self._form, self._targets)
        labels = [upload.labels] if isinstance(upload.labels, Tensor) else upload.labels.values()
        if not all(torch.equal(own, torch.cat([own[:size]] * len(self._clients))) for own in labels):
            raise FrameError("the clients' labels differ, though all are scored on the same samples")
        self._step, self._split, self._seen = self._step + 1, upload.split, seen
        self._splits = self._next_splits(upload)

    def _next_splits(self, upload: Upload) -> tuple[str, ...]:
        if upload.last:
            return ()
        later = self._all[self._all.index(upload.split) + 1 :]
        # A chunk that is not full is its split's last.
        return (upload.split, *later) if upload.sizes[0] == self._chunk or not later else later


def check_answer(upload: Upload, download: Download) -> None:
    """Check the server's answer to a node's upload.

    Raises
    ------
    FrameError
        If it is not an answer to it: another step's, for other clients, or tensors that do not fit.
    """
    if (download.server_round, download.step) != (upload.server_round, upload.step):
        raise FrameError(f"an answer to step {download.step} of round {download.server_round}")
    if upload.split != "train":
        if download.active or download.average is not None or download.own is not None or download.aside:
            raise FrameError("cut gradients in an evaluation")
        return
    form = upload.answer or Form(OFF, tuple(upload.smashed.shape[1:]), upload.smashed.dtype)
    sizes = dict(zip(upload.clients, upload.sizes, strict=True))
    if not set(download.active) <= sizes.keys():
        raise FrameError(f"active clients {few(download.active)} of {few(upload.clients)}")
    active = [sizes.pop(client) for client in download.active]
    _check_gradient("average", download.average, download.aside, form, bool(active))
    _check_gradient("own", download.own, download.aside, form, bool(sizes))
    if download.own is not None and len(download.own) != sum(sizes.values()):
        raise FrameError(f"own gradients of {len(download.own)} samples, not {sum(sizes.values())}")
    if download.average is not None and len(download.average) != 1 and len(download.average) < max(active):
        raise FrameError(f"an average of {len(download.average)} positions for batches of {max(active)}")
    for name, tensor in (("average", download.average), ("own", download.own)):
        if tensor is not None:
            _check_contents("cut gradients", tensor, coding.part(download.aside, name), form)


def _check_place(upload: Upload, server_round: int, step: int, splits: Sequence[str]) -> None:
    if (upload.server_round, upload.step) != (server_round, step) or upload.split not in splits:
        raise FrameError(
            f"{upload.split[:20]!r} step {upload.step} of round {upload.server_round} "
            f"instead of {' or '.join(splits)} step {step} of round {server_round}"
        )


def _check_tensors(upload: Upload, form: Form, targets: Kind) -> None:
    aside = coding.part(upload.aside, "smashed")
    _check_kind("smashed data", upload.smashed, aside, form)
    if wrong := complaint(targets, upload.labels, sum(upload.sizes), form.dtype):
        raise FrameError(wrong)
    _check_contents("smashed data", upload.smashed, aside, form)


def _check_gradient(name: str, tensor: Tensor | None, aside: Mapping[str, Tensor], form: Form, wanted: bool) -> None:
    if (tensor is not None) != wanted:
        raise FrameError(f"{'no' if wanted else 'an'} {name} cut gradient")
    if tensor is None:
        if coding.part(aside, name):
            raise FrameError(f"a scale or positions of no {name} cut gradient")
        return
    if not tensor.ndim or not len(tensor):
        raise FrameError(f"{name} cut gradient {tuple(tensor.shape)} {tensor.dtype}")
    _check_kind(f"{name} cut gradient", tensor, coding.part(aside, name), form)


def _check_kind(what: str, values: Tensor, aside: Mapping[str, Tensor], form: Form) -> None:
    """Dtypes and shapes of a tensor as it travels, with what goes with it."""
    shape, dtype = form.values()
    if values.dtype != dtype or tuple(values.shape[1:]) != shape:
        raise FrameError(f"{what} of shape {tuple(values.shape[1:])} and {values.dtype}, not {shape} and {dtype}")
    wanted = form.aside(len(values))
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in aside.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise FrameError(f"{what} with {_told(name, found)}, instead of {_told(name, wanted)}")


def _told(name: str, kinds: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> str:
    if name not in kinds:
        return f"no {name}"
    shape, dtype = kinds[name]
    return f"a {name} of shape {few(shape)} and {dtype}"


def _check_contents(what: str, values: Tensor, aside: Mapping[str, Tensor], form: Form) -> None:
    """The numbers themselves: finite, and positions that there are."""
    if "shape" in aside and tuple(aside["shape"].tolist()) != form.shape:
        raise FrameError(f"{what} of samples of shape {few(aside['shape'].tolist())}, not {form.shape}")
    # Of int8 a scale that is not finite is the codec's to refuse, as it is one that is too large.
    if wrong := form.codec.wrong(Coded(values, aside), form.shape):
        raise FrameError(f"{what} {wrong}")
    if not all(all_finite(part) for part in (values, *aside.values()) if part.is_floating_point()):
        raise FrameError(f"{what} that are {NOT_FINITE}")
