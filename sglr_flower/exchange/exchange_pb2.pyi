from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Upload(_message.Message):
    __slots__ = ("server_round", "step", "split", "clients", "sizes", "last", "tensors", "shared")
    SERVER_ROUND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    server_round: int
    step: int
    split: str
    clients: _containers.RepeatedScalarFieldContainer[int]
    sizes: _containers.RepeatedScalarFieldContainer[int]
    last: bool
    tensors: bytes
    shared: Shared
    def __init__(self, server_round: _Optional[int] = ..., step: _Optional[int] = ..., split: _Optional[str] = ..., clients: _Optional[_Iterable[int]] = ..., sizes: _Optional[_Iterable[int]] = ..., last: _Optional[bool] = ..., tensors: _Optional[bytes] = ..., shared: _Optional[_Union[Shared, _Mapping]] = ...) -> None: ...

class Download(_message.Message):
    __slots__ = ("server_round", "step", "active", "tensors", "shared")
    SERVER_ROUND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    server_round: int
    step: int
    active: _containers.RepeatedScalarFieldContainer[int]
    tensors: bytes
    shared: Shared
    def __init__(self, server_round: _Optional[int] = ..., step: _Optional[int] = ..., active: _Optional[_Iterable[int]] = ..., tensors: _Optional[bytes] = ..., shared: _Optional[_Union[Shared, _Mapping]] = ...) -> None: ...

class Shared(_message.Message):
    __slots__ = ("pid", "file", "size", "tensors")
    PID_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    pid: int
    file: int
    size: int
    tensors: _containers.RepeatedCompositeFieldContainer[Placed]
    def __init__(self, pid: _Optional[int] = ..., file: _Optional[int] = ..., size: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[Placed, _Mapping]]] = ...) -> None: ...

class Placed(_message.Message):
    __slots__ = ("name", "dtype", "shape", "offset")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    offset: int
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., offset: _Optional[int] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
