"""Clients' states in Flower's records: what a message carries, and what a node keeps in the middle of a round."""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.torch
from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from sglr_flower.flower.protocol import ProtocolError
from sglr_flower.run.checkpoint import packable
from sglr_flower.run.nodestate import State

STATES = "states"
_STEP = "states-of-step"


def keep_step(records: RecordDict, states: Mapping[int, State], attempt: int) -> None:
    """Keep the states in the middle of a round, where every step is a message (the grid exchange)."""
    packed = pack_states(states)
    packed["attempt"] = attempt
    records[_STEP] = packed


def step_states(records: RecordDict, attempt: int) -> dict[int, dict[str, Tensor]]:
    """What `keep_step` kept last in this attempt of a round; empty if nothing."""
    if _STEP not in records.config_records or records.config_records[_STEP]["attempt"] != attempt:
        return {}
    return unpack_states(records, _STEP)


def drop_step(records: RecordDict) -> None:
    """Forget what `keep_step` kept: the round is over, or begins again."""
    records.pop(_STEP, None)


def pack_states(states: Mapping[int, State]) -> ConfigRecord:
    """Clients' states as one safetensors blob, its tensors named CLIENT.NAME."""
    tensors = {f"{client}.{name}": tensor for client, state in states.items() for name, tensor in state.items()}
    packed: bytes = safetensors.torch.save(packable(tensors))
    return ConfigRecord({"tensors": packed})


def unpack_states(content: RecordDict, key: str = STATES) -> dict[int, dict[str, Tensor]]:
    """Clients' states from a message's content or a context's state; empty if there are none.

    Raises
    ------
    ProtocolError
        If they cannot be read, or are not named as `pack_states` does.
    """
    if key not in content.config_records:
        return {}
    packed = content.config_records[key].get("tensors")
    if not isinstance(packed, bytes):
        raise ProtocolError(f"the record {key} has no bytes named tensors")
    try:
        tensors = safetensors.torch.load(packed)
    except Exception as error:  # whatever its bytes do to the parser
        raise ProtocolError(f"clients' states that cannot be read ({type(error).__name__})") from None
    grouped: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        client, _, rest = name.partition(".")
        if not (client.isascii() and client.isdecimal() and len(client) <= 6):
            raise ProtocolError("clients' states with a tensor that is not named CLIENT.NAME")
        grouped.setdefault(int(client), {})[rest] = tensor
    return dict(sorted(grouped.items()))
