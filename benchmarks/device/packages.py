"""Which packages a machine with PyTorch but without Flower lacks: what `tools/gpu-carry` takes along."""

from __future__ import annotations

from pathlib import Path

_LIST = Path(__file__).with_name("pytorch-image.txt")

CARRIED = (
    *("pydantic", "pydantic_core", "annotated-types", "typing-inspection", "typing_extensions"),
    *("platformdirs", "tomli_w", "cryptography", "cffi", "pycparser"),
    *("typer", "click", "rich"),  # a usual image has some version of these, and not always one that we take
)
"""What is carried, in the versions of this environment: a pair that belongs together stays together."""


def there() -> tuple[str, ...]:
    """Names of the packages that a usual PyTorch image has; no versions, as they differ."""
    return tuple(line for line in _LIST.read_text(encoding="utf-8").split("\n") if line and not line.startswith("#"))
