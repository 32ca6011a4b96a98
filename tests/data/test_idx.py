"""Data sets of idx files: the data folder, the reading, and a download with and without a network."""

import gzip
import hashlib
import socket
import struct
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from torchvision.datasets import FashionMNIST

from sglr_flower.data import download, idx
from sglr_flower.data.datasets import ensure_present, load
from sglr_flower.errors import UserError

FASHION = idx.SOURCES["fashion-mnist"]


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


def tiny_files():
    """A Fashion-MNIST of 12 train and 4 test images."""
    draw = np.random.default_rng(0)
    files = {}
    for part, size in (("train", 12), ("t10k", 4)):
        images = draw.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        files[f"{part}-images-idx3-ubyte"] = idx_bytes(images)
        files[f"{part}-labels-idx1-ubyte"] = idx_bytes(np.arange(size, dtype=np.uint8) % 10)
    return files


def write_files(root, suffix="", transform=bytes):
    raw = FASHION.raw(root)
    raw.mkdir(parents=True)
    for name, content in tiny_files().items():
        (raw / f"{name}{suffix}").write_bytes(transform(content))


class Mirror(BaseHTTPRequestHandler):
    """Serves the tiny files as the real mirrors serve theirs, and notes every file asked for."""

    def __init__(self, files, served, stall, *args):
        self.files, self.served, self.stall = files, served, stall
        super().__init__(*args)

    def do_HEAD(self):
        """Refuse to list the folder, as S3 does."""
        self.send_error(404)

    def do_GET(self):
        """Serve a file, after a long while if told to stall."""
        name = self.path.strip("/")
        self.served.append(name)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.files[name])))
        self.end_headers()
        if self.stall:
            time.sleep(1.5)
        self.wfile.write(self.files[name])

    def log_message(self, *args):
        """Keep quiet."""


@pytest.fixture
def mirror(monkeypatch):
    """Let torchvision download the tiny files from this machine; yields start(stall), which returns what was served."""
    servers = []

    def start(stall=False):
        files = {f"{name}.gz": gzip.compress(content) for name, content in tiny_files().items()}
        served = []
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Mirror, files, served, stall))
        server.handle_error = lambda *args: None  # a client that gave up is no news
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        resources = [(name, hashlib.md5(content).hexdigest()) for name, content in files.items()]
        monkeypatch.setattr(FashionMNIST, "resources", resources)
        return served

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def no_network(monkeypatch):
    def fail(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)


def test_classes_are_torchvisions():
    assert list(FASHION.classes) == FashionMNIST.classes


def test_data_folder_prefers_data_dir_to_variable_to_default(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(download.DATA_DIR_VARIABLE, str(tmp_path / "variable"))
    assert download.data_folder(str(tmp_path / "given")).path == tmp_path / "given"
    assert download.data_folder("").path == tmp_path / "variable"
    monkeypatch.delenv(download.DATA_DIR_VARIABLE)
    assert download.data_folder("").path.name == "sglr-flower"


def test_data_folder_understands_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download.data_folder("~/images").path == tmp_path / "images"


@pytest.mark.parametrize(("suffix", "transform"), [("", bytes), (".gz", gzip.compress)])
def test_read_agrees_with_torchvision(tmp_path, suffix, transform):
    write_files(tmp_path / "ours", suffix, transform)
    write_files(tmp_path / "theirs")
    assert FASHION.is_present(tmp_path / "ours")
    for part, train in (("train", True), ("t10k", False)):
        images, labels = idx.read(FASHION, tmp_path / "ours", part)
        theirs = FashionMNIST(str(tmp_path / "theirs"), train=train)
        assert torch.equal(images, theirs.data)
        assert torch.equal(labels, theirs.targets)


def test_is_present_wants_all_four_files(tmp_path):
    write_files(tmp_path)
    (FASHION.raw(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    assert not FASHION.is_present(tmp_path)


@pytest.mark.parametrize("length", [0, 3, 10, 500])
def test_a_file_cut_short_is_the_users_to_delete(tmp_path, length):
    write_files(tmp_path)
    file = FASHION.raw(tmp_path) / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte cannot be read .* delete it"):
        load("fashion-mnist", str(tmp_path), 0)


def test_a_broken_gzip_file_is_the_users_to_delete(tmp_path):
    write_files(tmp_path, ".gz", lambda content: gzip.compress(content)[:50])
    with pytest.raises(UserError, match="cannot be read"):
        load("fashion-mnist", str(tmp_path), 0)


def test_download_puts_the_files_in_place_and_says_nothing(mirror, tmp_path, capfd):
    served = mirror()
    splits = load("fashion-mnist", str(tmp_path / "new"), 0)
    assert len(splits.train) == 10
    assert len(splits.test) == 4
    assert set(served) == {f"{name}.gz" for name in tiny_files()}
    assert [entry.name for entry in (tmp_path / "new").iterdir() if entry.name.startswith(".download")] == []
    assert capfd.readouterr() == ("", "")
    assert socket.getdefaulttimeout() is None


def test_download_from_the_folder_of_the_variable(mirror, tmp_path, monkeypatch):
    mirror()
    monkeypatch.setenv(download.DATA_DIR_VARIABLE, str(tmp_path))
    ensure_present("fashion-mnist", "")
    assert FASHION.is_present(tmp_path)


def test_several_at_once_download_once(mirror, tmp_path):
    served = mirror()
    errors = []

    def ensure():
        try:
            ensure_present("fashion-mnist", str(tmp_path))
        except UserError as error:
            errors.append(error)

    threads = [threading.Thread(target=ensure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len([name for name in served if name.startswith("train-images")]) <= 2  # redirect check and download
    assert FASHION.is_present(tmp_path)


def test_who_waited_for_a_failed_download_does_not_try_again(monkeypatch, tmp_path):
    started, tries = threading.Event(), []

    def fail_slowly(source, root):
        tries.append(source)
        started.set()
        time.sleep(0.3)
        raise ConnectionError("no network")

    monkeypatch.setattr(download, "_download_unlocked", fail_slowly)

    def be_first():
        with pytest.raises(UserError, match="no network"):
            ensure_present("mnist", str(tmp_path))

    first = threading.Thread(target=be_first)
    first.start()
    started.wait()
    with pytest.raises(UserError, match="another process tried just now and failed"):
        ensure_present("mnist", str(tmp_path))
    first.join()
    assert len(tries) == 1


@pytest.mark.usefixtures("no_network")
def test_missing_data_without_a_network_is_one_sentence(tmp_path, capfd):
    with pytest.raises(UserError) as caught:
        load("mnist", str(tmp_path), 0)
    sentence = str(caught.value)
    assert sentence.startswith(f"Data set mnist is not in {tmp_path} (from data-dir)")
    assert "no network" in sentence
    assert "put its files there (MNIST/raw/train-images-idx3-ubyte, " in sentence
    assert "\n" not in sentence
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("no_network")
def test_missing_data_names_the_variable_that_chose_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(download.DATA_DIR_VARIABLE, str(tmp_path))
    with pytest.raises(UserError, match="from SGLR_DATA_DIR"):
        ensure_present("fashion-mnist", "")


def test_a_folder_that_cannot_be_written_to(tmp_path):
    # Below a regular file, since a test run by root may write to any folder.
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"fashion-mnist is not in .*/file/data .*Not a directory.*set data-dir"):
        ensure_present("fashion-mnist", str(tmp_path / "file" / "data"))


def test_a_look_up_that_hangs_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr(download, "_PATIENCE", 0.2)
    released = threading.Event()

    def hang(*args, **kwargs):
        released.wait()
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with pytest.raises(UserError, match="no answer from the network"):
        ensure_present("mnist", str(tmp_path))
    released.set()


def test_a_mirror_that_stalls_is_given_up(monkeypatch, mirror, tmp_path, capfd):
    mirror(stall=True)
    monkeypatch.setattr(download, "_PATIENCE", 0.3)
    with pytest.raises(UserError, match=r"could not be downloaded there \(.*timed out"):
        ensure_present("fashion-mnist", str(tmp_path))
    assert not FASHION.is_present(tmp_path)
    assert socket.getdefaulttimeout() is None
    assert capfd.readouterr() == ("", "")
