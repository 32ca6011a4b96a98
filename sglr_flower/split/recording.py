"""What a function computes, recorded once and done again without Python: a CUDA graph, on a CPU a list of operations.

A recorded function reads and writes the same tensors every time, at the same addresses; a number of Python that it has
used is what it was. So whatever differs from one time to the next (a batch, a learning rate) has to be in a tensor that
is written before.

On a GPU the launches of a step's kernels from Python are what a small network's step waits for. On a CPU nothing is
gained; it is there so that the same code can be tested, and a mistake found, where there is no GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

Replay = Callable[[], None]
"""Does again what was recorded."""

_UNFIT = {
    torch.Tag.nondeterministic_seeded: "it draws random numbers",
    torch.Tag.data_dependent_output: "it waits for a value that was computed",
    torch.Tag.dynamic_output_shape: "the shape of a result depends on the values",
}


class Recorder:
    """Records functions on a device.

    Parameters
    ----------
    device : torch.device
        Where all tensors of the functions are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Recorded on a stream of their own, and tried on it before: libraries set up what they need for each stream.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # One pool for all: what a recording keeps between its operations is of no use once it is done.
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def attempt(self, function: Callable[[], None]) -> str:
        """Do a function, and say why it cannot be recorded; empty if it can.

        It has to be done once before it is recorded, so that nothing is made in it for the first time.
        """
        watch = _Watch()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        with self._beside(), watch:
            function()
        return watch.refusal

    def record(self, function: Callable[[], None]) -> Replay:
        """Do a function once more and keep what it does.

        Raises
        ------
        RuntimeError
            If CUDA cannot record it.
        """
        if self._stream is None:
            operations = _Operations()
            with operations:
                function()
            return operations.replay
        graph = torch.cuda.CUDAGraph()
        gc.collect()  # what is freed in the middle of a recording would be a part of it
        with torch.cuda.device(self._device):
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            with torch.cuda.stream(self._stream):
                graph.capture_begin(pool=self._pool)
                try:
                    function()
                except BaseException:
                    self._abandon(graph)
                    raise
                graph.capture_end()
            graph.replay()  # recording does not compute
        return graph.replay

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a recording in its middle, so that the process can go on without it."""
        with suppress(RuntimeError):  # CUDA's, of the same cause
            graph.capture_end()
        # Where that failed, torch takes the recording to be under way still.
        with suppress(RuntimeError, AttributeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), cast("tuple[int, int]", self._pool))
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def _beside(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)


class _Watch(TorchDispatchMode):
    """Notes the first operation that cannot be recorded."""

    refusal = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tag in func.tags:
            if not self.refusal and tag in _UNFIT:
                self.refusal = f"{_UNFIT[tag]} ({func})"
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    """Records as a CUDA graph does: operations with the tensors and numbers that they had, below autograd."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._done: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if torch.Tag.inplace_view in func.tags:
            return output  # nothing is computed, and those that come after it see the tensor as it is then
        # Aliases: what autograd thinks of a tensor is not the recording's.
        kept_args, kept_kwargs, kept = tree_map_only(Tensor, Tensor.detach, (args, kwargs or {}, output))
        self._done.append((func, kept_args, kept_kwargs, _tensors(kept)))
        return output

    @torch.no_grad()
    def replay(self) -> None:
        """Every operation on the tensors that it had, with its results where they were."""
        for func, args, kwargs, kept in self._done:
            for new, old in zip(_tensors(func(*args, **kwargs)), kept, strict=True):
                if new.data_ptr() != old.data_ptr():  # else a view, or written in place
                    old.copy_(new)


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
