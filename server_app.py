"""The ServerApp: a run from its config to its result."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from sglr_flower.flower.server import serve

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the run that ``context.run_config`` describes."""
    serve(grid, context.run_config)
