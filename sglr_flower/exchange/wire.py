"""What both ends of a stream agree on: the error of a broken one, the names on the wire, gRPC's settings."""

from __future__ import annotations

SECRET_KEY = "sglr-secret"
"""The metadata that every call carries."""
MAX_FRAME = 1 << 30
"""Bytes of a frame, unless the run knows better: protobuf's own limit is twice that."""


class ExchangeError(RuntimeError):
    """An exchange that broke, or whose other side said nothing in time."""


def options(max_frame: int) -> list[tuple[str, int]]:
    """Settings of a gRPC channel or server, the same on both ends.

    Parameters
    ----------
    max_frame : int
        The largest frame taken from the wire, in bytes; a larger one ends the call before it is stored.
    """
    return [
        ("grpc.max_send_message_length", -1),  # the receiver's limit is the one that protects somebody
        ("grpc.max_receive_message_length", max_frame),
        # The limit above counts what is on the wire: a compressed frame could be a thousand times as large in memory.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # A step's frame in a few pieces and not in hundreds; small enough for pings to get through in between.
        ("grpc.http2.max_frame_size", 1 << 20),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.max_pings_without_data", 0),  # a step may take longer than two pings
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.enable_http_proxy", 0),  # a proxy set for the web must not swallow a stream to our own port
        ("grpc.so_reuseport", 0),
    ]
