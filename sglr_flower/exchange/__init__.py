"""How a step's tensors travel between the nodes and the server: `stream` (gRPC) and `grid` (Flower messages)."""
