from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Upload(_message.Message):
    __slots__ = ("server_round", "step", "split", "clients", "sizes", "last", "tensors")
    SERVER_ROUND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    server_round: int
    step: int
    split: str
    clients: _containers.RepeatedScalarFieldContainer[int]
    sizes: _containers.RepeatedScalarFieldContainer[int]
    last: bool
    tensors: bytes
    def __init__(self, server_round: _Optional[int] = ..., step: _Optional[int] = ..., split: _Optional[str] = ..., clients: _Optional[_Iterable[int]] = ..., sizes: _Optional[_Iterable[int]] = ..., last: _Optional[bool] = ..., tensors: _Optional[bytes] = ...) -> None: ...

class Download(_message.Message):
    __slots__ = ("server_round", "step", "active", "tensors")
    SERVER_ROUND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    server_round: int
    step: int
    active: _containers.RepeatedScalarFieldContainer[int]
    tensors: bytes
    def __init__(self, server_round: _Optional[int] = ..., step: _Optional[int] = ..., active: _Optional[_Iterable[int]] = ..., tensors: _Optional[bytes] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
