#!/usr/bin/env bash
# grpcio 1.85.3: compression gets no message through a size limit; both sides' limits are of the uncompressed size.
#
# A good guess: max_send_message_length and max_receive_message_length bound what is sent and received. Five MiB that
# compress to five KiB pass a limit of four MiB once compression is on.
# Seen: RESOURCE_EXHAUSTED either way: the sender measures before it compresses, the receiver once more after it has
# decompressed (its default limit is 4 MiB). So a frame of sparse smashed data needs limits of its dense size. With
# limits that fit it passes, and then with some thousands of bytes on the wire.
set -euo pipefail
source "$(dirname "$0")/environment.bash"
install grpcio==1.85.3
"$python" - <<'PY'
import gzip
from concurrent.futures import ThreadPoolExecutor

import grpc

MIB = 2**20
payload = bytes(5 * MIB)


def outcome(sends, receives):
    """Of one call with gzip between a client and a server with these limits."""
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.max_receive_message_length", receives)])
    count = grpc.unary_unary_rpc_method_handler(lambda request, _: str(len(request)).encode())
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Finding", {"Count": count}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    limit = [("grpc.max_send_message_length", sends)]
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=limit, compression=grpc.Compression.Gzip) as channel:
            return channel.unary_unary("/Finding/Count")(payload, timeout=60).decode()
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"
    finally:
        server.stop(None)


receiver, sender, neither = outcome(-1, 4 * MIB), outcome(4 * MIB, -1), outcome(6 * MIB, 6 * MIB)
print(f"grpcio {grpc.__version__}: {len(payload):,} zeros, {len(gzip.compress(payload)):,} bytes after gzip, sent with gzip.")
print(f"The receiver's limit is 4 MiB: {receiver}")
print(f"The sender's limit is 4 MiB: {sender}")
print(f"Both are 6 MiB: {neither}")
assert receiver.startswith("RESOURCE_EXHAUSTED"), "changed: the receiver's limit is of the compressed size"
assert sender.startswith("RESOURCE_EXHAUSTED"), "changed: the sender's limit is of the compressed size"
assert neither == str(len(payload)), "changed: a message below both limits does not arrive"
PY
