"""Our ClientApp, except that the node of partition 1 answers what the case of now says."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from flower.test_odd_nodes import CASES
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from sglr_flower.flower import node

CASE = "SGLR_ODD_CASE"
"""Environment: the file with the name of the case, one of `flower.test_odd_nodes.CASES`."""

app = ClientApp()


def odd(kind: str, handler: Callable[[Message, Context], Message]) -> Callable[[Message, Context], Message]:
    """The handler of ``query.ACTION``, ``train.*``, as the case changes its answers."""

    def wrapped(message: Message, context: Context) -> Message:
        reply = handler(message, context)
        changed, change, *_ = CASES[Path(os.environ[CASE]).read_text()]
        if changed.split(".")[0] in ("train", "evaluate"):
            changed = changed.replace("grid", "stream")
        if kind == changed and int(context.node_config["partition-id"]) == 1:
            return Message(change(reply.content), reply_to=message)
        return reply

    return wrapped


app.query("hello")(odd("query.hello", node.hello))
app.query("assign")(odd("query.assign", node.assign))
app.train("stream")(odd("train.stream", node.train_stream))
app.train("local")(odd("train.local", node.train_local))
app.evaluate("stream")(odd("evaluate.stream", node.evaluate_stream))
