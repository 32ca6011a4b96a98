"""The ClientApp: which function handles which message."""

from flwr.clientapp import ClientApp

from sglr_flower.flower import node

app = ClientApp()
app.query("hello")(node.hello)
app.query("assign")(node.assign)
app.query("collect")(node.collect)
app.train("stream")(node.train_stream)
app.train("grid")(node.train_grid)
app.train("local")(node.train_local)
app.evaluate("stream")(node.evaluate_stream)
app.evaluate("grid")(node.evaluate_grid)
