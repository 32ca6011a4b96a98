"""Our ClientApp, except that one node's training fails in the middle of a round."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from sglr_flower.flower import node
from sglr_flower.split.cohort import Cohort

app = ClientApp()
app.query("hello")(node.hello)
app.query("assign")(node.assign)


@app.train("stream")
def train(message: Message, context: Context) -> Message:
    """Fail in the second step on the node that hosts client 1."""
    backward = Cohort.backward

    def failing(self, download):
        if download.step == 1 and 1 in self.clients:
            raise MemoryError("the device is out of memory")
        backward(self, download)

    Cohort.backward = failing
    try:
        return node.train_stream(message, context)
    finally:
        Cohort.backward = backward
