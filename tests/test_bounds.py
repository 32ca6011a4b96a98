"""The versions that pyproject.toml allows, as `tools/bounds` reads them."""

from __future__ import annotations

import importlib.util
import re
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bounds() -> ModuleType:
    loader = SourceFileLoader("bounds", str(ROOT / "tools" / "bounds"))
    spec = importlib.util.spec_from_loader("bounds", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_every_dependency_has_a_lower_bound(bounds: ModuleType) -> None:
    optional = bounds.PROJECT["optional-dependencies"]
    texts = [*bounds.PROJECT["dependencies"], *(text for group in optional.values() for text in group)]
    ours = [text for text in texts if text.startswith(bounds.PROJECT["name"])]
    allowed = bounds.declared()
    assert len(allowed) == len(texts) - len(ours)
    assert all(bounds.lower_bound(versions) for versions in allowed.values())


@pytest.mark.parametrize(
    ("one", "other"), [("14", "14.0.0"), ("2.13.0+cpu", "2.13"), ("0.6.1", "0.6.1"), ("30.0", "30")]
)
def test_zeros_at_the_end_do_not_make_another_version(bounds: ModuleType, one: str, other: str) -> None:
    assert bounds.number(one) == bounds.number(other)
    assert bounds.number(one) != bounds.number(f"{other}.1")
    assert bounds.lower_bound(f">={one.split('+')[0]},<99") == bounds.lower_bound(f"=={other}")


def test_what_the_generated_code_asks_for_is_declared(bounds: ModuleType) -> None:
    """It refuses an older protobuf or grpcio when it is imported."""
    folder = ROOT / "sglr_flower" / "exchange"
    protobuf = re.search(r"Protobuf Python Version: ([\d.]+)", (folder / "exchange_pb2.py").read_text())
    grpcio = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", (folder / "exchange_pb2_grpc.py").read_text())
    assert protobuf
    assert grpcio
    assert bounds.lower_bound(bounds.declared()["protobuf"]) >= bounds.number(protobuf[1])
    assert bounds.lower_bound(bounds.declared()["grpcio"]) >= bounds.number(grpcio[1])
