"""Codecs by the names that run-config keys have for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sglr_flower import imports
from sglr_flower.errors import UserError
from sglr_flower.split.codecs.codec import Codec
from sglr_flower.split.codecs.int8 import Int8
from sglr_flower.split.codecs.rounded import OFF, Rounded
from sglr_flower.split.codecs.sparse import TopK

KINDS: dict[str, Callable[..., Codec]] = {
    "none": lambda: OFF,
    "bfloat16": partial(Rounded, "bfloat16"),
    "float16": partial(Rounded, "float16"),
    "int8": Int8,
    "int8-channel": partial(Int8, channels=True),
    "topk": TopK,
    "randtopk": TopK,
}
"""What makes a codec of the numbers in its name."""


def parse(text: str) -> Codec:
    """Read a codec's name.

    Raises
    ------
    ValueError
        If it is none; the sentence says which there are.
    """
    kind, *numbers = text.split(":")
    wanted = {"topk": 1, "randtopk": 2}.get(kind, 0)
    try:
        fractions = [float(number) for number in numbers]
    except ValueError:
        fractions = []
    if kind in KINDS and len(fractions) == wanted == len(numbers) and all(0 < part < 1 for part in fractions):
        return KINDS[kind](*fractions)
    raise ValueError(
        "it must be none, bfloat16, float16, int8, int8-channel, topk:F or randtopk:F:A with fractions F and A "
        "between 0 and 1, or package.module:name"
    )


def is_own(name: str) -> bool:
    """Whether a name is the import path of one's own codec."""
    return imports.is_path(name) and name.partition(":")[0] not in KINDS


def get(name: str, key: str) -> Codec:
    """The codec of a run-config key, ``wire-up`` or ``wire-down``: `parse`'s, or one's own by its import path.

    Raises
    ------
    UserError
        If what the path names is neither a `Codec` nor a class of such that is made without arguments.
    ValueError
        As `parse`.
    """
    if not is_own(name):
        return parse(name)
    own = imports.instance(name, key)
    if not isinstance(own, Codec):
        wanted = "it must be a sglr_flower.split.codecs.Codec, or a class of such without arguments"
        raise UserError(f"run-config key {key} = {name!r}: {wanted}, not a {type(own).__name__}")
    return own
