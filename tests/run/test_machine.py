"""What is known of this machine's CPU, and what a person is told of it."""

from __future__ import annotations

import logging
import platform
from pathlib import Path

import pytest
from flower import test_node
from flower.conftest import task  # noqa: F401
from flwr.app import ConfigRecord, Message, RecordDict

from sglr_flower.cli import commands
from sglr_flower.flower import node, protocol
from sglr_flower.run import machine
from sglr_flower.run.config import RunConfig

X86 = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu sse avx2 {}\n\nprocessor\t: 1\nflags\t\t: fpu\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {}\nCPU implementer\t: 0x41\n"


def cpu(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "_CPU_INFO", folder / "cpuinfo")


@pytest.mark.parametrize(
    ("text", "has"),
    [
        (X86.format("avx512f avx512_bf16"), True),
        (X86.format("amx_bf16 amx_tile"), True),
        (X86.format("avx512f avx512_vnni"), False),
        (X86.format(""), False),
        (ARM.format("i8mm bf16"), True),
        (ARM.format("crc32 cpuid"), False),
        ("processor : 0\n", True),
    ],
)
def test_bfloat16_is_known_by_linuxs_names(
    text: str, has: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu(text, tmp_path, monkeypatch)
    assert machine.has_bfloat16() is has


def test_where_nothing_is_known_nobody_is_warned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CPU_INFO", tmp_path / "nothing")
    assert machine.slow_autocast("bfloat16", on_cpu=True) == ""


@pytest.mark.parametrize(
    ("values", "gpus", "flags", "warned"),
    [
        ({"autocast": "bfloat16"}, 0, "", True),
        ({"autocast": "bfloat16"}, 0, "avx512_bf16", False),
        ({"autocast": "bfloat16"}, 1, "", False),
        ({"autocast": "bfloat16", "server-device": "cpu"}, 1, "", True),
        ({}, 0, "", False),
    ],
)
def test_who_starts_a_run_is_warned_in_one_sentence(
    values: dict[str, str],
    gpus: int,
    flags: str,
    warned: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cpu(X86.format(flags), tmp_path, monkeypatch)
    commands._warn_of_slow_autocast(RunConfig.parse(values), gpus)
    said = capsys.readouterr().err
    assert said.count("\n") == warned
    assert ("warning: run-config key autocast = 'bfloat16': this machine's CPU has no instructions" in said) == warned


@pytest.mark.parametrize("flags", ["", "avx512_bf16"])
def test_a_node_says_so_in_its_log(
    flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cpu(X86.format(flags), tmp_path, monkeypatch)
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    monkeypatch.setattr(node, "assembly", CpuOnly(node.assembly))
    config = test_node.CONFIG.replace(autocast="bfloat16")
    content = RecordDict(
        {protocol.ORDER: ConfigRecord(test_node.order()), protocol.CONFIG: ConfigRecord({**config.values()})}
    )
    message = Message(content, 7, "query.assign")
    message.metadata.__dict__["_message_id"] = "1"
    with caplog.at_level(logging.WARNING, logger="flwr.sglr"):
        node.assign(message, test_node.context(tmp_path))
    warnings = [record.getMessage() for record in caplog.records if "autocast" in record.getMessage()]
    assert [text.startswith("node attic: run-config key autocast") for text in warnings] == ([] if flags else [True])


class CpuOnly:
    """`assembly` on a machine without a GPU."""

    def __init__(self, real: object) -> None:
        self._real = real

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    @staticmethod
    def device() -> object:
        import torch

        return torch.device("cpu")


def test_the_processor_has_linuxs_name_or_its_architectures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nmodel name\t: another\n", tmp_path, monkeypatch)
    assert machine.processor() == "Some CPU @ 3 GHz"
    cpu(ARM, tmp_path, monkeypatch)
    assert machine.processor() == platform.machine()
