"""Our ClientApp, except that training fails where a file beside the run's directory says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from sglr_flower.flower import hosting, node
from sglr_flower.split.cohort import Cohort

app = ClientApp()
app.query("hello")(node.hello)
app.query("assign")(node.assign)
app.query("collect")(node.collect)
app.evaluate("stream")(node.evaluate_stream)
app.evaluate("grid")(node.evaluate_grid)


def plan_file(run_dir: Path) -> Path:
    """Where the failures of a run are written: a list of objects with round, step, client, times."""
    return run_dir.with_name(f"{run_dir.name}-failures.json")


def failing(handler: Callable[[Message, Context], Message]) -> Callable[[Message, Context], Message]:
    """A handler whose cohort fails in the forward of a planned step, as often as planned."""

    def wrapped(message: Message, context: Context) -> Message:
        config = hosting.config(context)
        file, forward = plan_file(Path(config.run_dir)), Cohort.forward

        def planned(self, plan, step, *, again=False):
            for number, failure in enumerate(json.loads(file.read_text())):
                here = failure["client"] in self.clients
                if here and not again and (plan.server_round, step) == (failure["round"], failure["step"]):
                    done = file.with_name(f"{file.stem}-{number}-{failure['times']}")
                    if failure["times"] > (count := len(done.read_text()) if done.exists() else 0):
                        done.write_text("x" * (count + 1))
                        raise MemoryError("the device is out of memory")
            return forward(self, plan, step, again=again)

        Cohort.forward = planned
        try:
            return handler(message, context)
        finally:
            Cohort.forward = forward

    return wrapped


app.train("stream")(failing(node.train_stream))
app.train("grid")(failing(node.train_grid))
