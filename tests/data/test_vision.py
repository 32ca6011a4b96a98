"""CIFAR-10, CIFAR-100, SVHN and STL-10, from tiny files in torchvision's layout.

torchvision's MD5 sums are replaced by those of the tiny files: what is tested is that a file with another one is never
opened.
"""

import hashlib
import io
import pickle
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from scipy.io import savemat
from torchvision import datasets as torchvision_datasets

from sglr_flower.data import vision
from sglr_flower.data.datasets import ensure_present, load, targets
from sglr_flower.errors import UserError

NAMES = list(vision.SOURCES)
TRAIN, TEST = 20, 4


def pixels(count, size, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def labels(dataset, count):
    return np.arange(count) * 7 % len(targets(dataset).names)


def originals(dataset):
    """Train and test images and labels that the tiny files hold."""
    size = 96 if dataset == "stl-10" else 32
    return [(pixels(count, size, count), labels(dataset, count)) for count in (TRAIN, TEST)]


def cifar_files(dataset):
    (train, train_labels), (test, test_labels) = originals(dataset)
    key = "labels" if dataset == "cifar-10" else "fine_labels"

    def batch(images, numbers):
        return pickle.dumps({"data": images.reshape(len(images), -1), key: numbers.tolist()})

    if dataset == "cifar-100":
        meta = pickle.dumps({"fine_label_names": list(targets(dataset).names)})
        folder = {"train": batch(train, train_labels), "test": batch(test, test_labels), "meta": meta}
        return {f"cifar-100-python/{name}": content for name, content in folder.items()}
    folder = {f"data_batch_{i + 1}": batch(train[4 * i : 4 * i + 4], train_labels[4 * i : 4 * i + 4]) for i in range(5)}
    folder["test_batch"] = batch(test, test_labels)
    folder["batches.meta"] = pickle.dumps({"label_names": list(targets(dataset).names)})
    return {f"cifar-10-batches-py/{name}": content for name, content in folder.items()}


def svhn_files():
    files = {}
    for part, (images, numbers) in zip(("train", "test"), originals("svhn"), strict=True):
        content = io.BytesIO()
        # In the published files the digit 0 is class 10.
        savemat(content, {"X": images.transpose(2, 3, 1, 0), "y": np.where(numbers == 0, 10, numbers)[:, None]})
        files[f"{part}_32x32.mat"] = content.getvalue()
    return files


def stl_files():
    files = {"stl10_binary/unlabeled_X.bin": bytes(3 * 96 * 96)}
    for part, (images, numbers) in zip(("train", "test"), originals("stl-10"), strict=True):
        files[f"stl10_binary/{part}_X.bin"] = images.transpose(0, 1, 3, 2).tobytes()  # columns first
        files[f"stl10_binary/{part}_y.bin"] = (numbers + 1).astype(np.uint8).tobytes()
    return files


def tiny_files(dataset):
    return {"svhn": svhn_files, "stl-10": stl_files}.get(dataset, partial(cifar_files, dataset))()


def expect(monkeypatch, dataset, files):
    """Let torchvision take these files for the published ones."""
    sums = {name.split("/")[-1]: hashlib.md5(content).hexdigest() for name, content in files.items()}
    theirs = getattr(torchvision_datasets, vision.SOURCES[dataset].name)
    if dataset == "svhn":
        parts = {part: [url, file, sums.get(file, "")] for part, (url, file, _) in theirs.split_list.items()}
        monkeypatch.setattr(theirs, "split_list", parts)
        return theirs
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(theirs, attribute, [[file, sums[file]] for file, _ in getattr(theirs, attribute)])
    if dataset != "stl-10":
        monkeypatch.setattr(theirs, "meta", theirs.meta | {"md5": sums[theirs.meta["filename"]]})
    return theirs


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


@pytest.fixture(params=NAMES)
def dataset(request, monkeypatch):
    """A data set whose published files are the tiny ones."""
    expect(monkeypatch, request.param, tiny_files(request.param))
    return request.param


def by_bytes(images, numbers):
    return sorted((image.tobytes(), int(number)) for image, number in zip(images, numbers, strict=True))


def test_the_files_are_those_that_torchvision_wants(dataset):
    assert set(vision.SOURCES[dataset].files) == set(tiny_files(dataset))
    theirs = vision.SOURCES[dataset].torchvision_class()
    if dataset == "svhn":
        wanted = [theirs.split_list[part][1] for part in ("train", "test")]
    else:
        meta = [theirs.meta["filename"]] if hasattr(theirs, "meta") else []
        wanted = [f"{theirs.base_folder}/{file}" for file in [*dict(theirs.train_list + theirs.test_list), *meta]]
    assert sorted(wanted) == sorted(vision.SOURCES[dataset].files)


def test_images_and_labels_are_those_of_the_files(dataset, tmp_path):
    write(tmp_path, tiny_files(dataset))
    size = 96 if dataset == "stl-10" else 32
    splits = load(dataset, str(tmp_path), 0, size)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [17, 3, 4]
    for part in (splits.train, splits.validation, splits.test):
        assert part.images.dtype == torch.uint8
        assert part.images.shape[1:] == (3, size, size)
        assert part.labels.dtype == torch.int64
    (train, train_labels), (test, test_labels) = originals(dataset)
    assert np.array_equal(splits.test.images, test)
    assert np.array_equal(splits.test.labels, test_labels)
    ours = by_bytes(splits.train.images.numpy(), splits.train.labels)
    held_out = by_bytes(splits.validation.images.numpy(), splits.validation.labels)
    assert sorted(ours + held_out) == by_bytes(train, train_labels)
    assert splits.classes == targets(dataset).names


def test_default_and_other_sizes(dataset, tmp_path):
    write(tmp_path, tiny_files(dataset))
    assert load(dataset, str(tmp_path), 0).test.images.shape[2:] == ((48, 48) if dataset == "stl-10" else (32, 32))
    assert load(dataset, str(tmp_path), 0, 16).test.images.shape[2:] == (16, 16)


def test_a_changed_file_is_refused(dataset, tmp_path):
    write(tmp_path, tiny_files(dataset))
    for name in vision.SOURCES[dataset].files:
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-1])
        with pytest.raises(UserError, match=f"in {tmp_path} is damaged .*delete .*{name}"):
            load(dataset, str(tmp_path), 0)
        (tmp_path / name).write_bytes(whole)


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("dataset", ["cifar-10", "cifar-100"], indirect=True)
def test_a_pickle_that_is_not_the_published_one_is_never_unpickled(dataset, tmp_path):
    for name in vision.SOURCES[dataset].files:
        write(tmp_path, tiny_files(dataset) | {name: pickle.dumps(Trap(tmp_path / "ran"))})
        with pytest.raises(UserError, match="is damaged"):
            load(dataset, str(tmp_path), 0)
        assert not (tmp_path / "ran").exists()
    (tmp_path / "trap").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    pickle.loads((tmp_path / "trap").read_bytes()).close()
    assert (tmp_path / "ran").exists()  # the trap is one


# --- download ---


@pytest.fixture
def mirror(dataset, monkeypatch, tmp_path_factory):
    """Let torchvision download the data set from this machine; returns the paths that were asked for."""
    folder, served = tmp_path_factory.mktemp("mirror"), []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            served.append(self.path)
            super().do_GET()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    # torchvision looks for a redirect and hangs up, which the server would print as an error if it is still sending.
    server.handle_error = lambda *_: None
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    address, files = f"http://127.0.0.1:{server.server_port}", tiny_files(dataset)
    theirs = expect(monkeypatch, dataset, files)
    if dataset == "svhn":
        write(folder, files)
        parts = {part: [f"{address}/{file}", file, md5] for part, (_, file, md5) in theirs.split_list.items()}
        monkeypatch.setattr(theirs, "split_list", parts)
    else:
        with tarfile.open(folder / theirs.filename, "w:gz") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        monkeypatch.setattr(theirs, "url", f"{address}/{theirs.filename}")
        monkeypatch.setattr(theirs, "tgz_md5", hashlib.md5((folder / theirs.filename).read_bytes()).hexdigest())
    yield served
    server.shutdown()
    server.server_close()


def test_download_leaves_the_files_and_nothing_else(dataset, mirror, tmp_path, capfd):
    assert len(load(dataset, str(tmp_path / "new"), 0).test) == TEST
    source = vision.SOURCES[dataset]
    left = {str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert left - {f".{source.name}.lock"} == set(source.files)
    said = "".join(capfd.readouterr())  # of progress nothing; other threads of this process may print, too
    assert not [word for word in ("%", "ownload", "xtract", "erified") if word in said]


def test_several_at_once_download_once(dataset, mirror, tmp_path):
    with ThreadPoolExecutor(3) as threads:
        for ended in [threads.submit(ensure_present, dataset, str(tmp_path)) for _ in range(3)]:
            ended.result()
    assert vision.SOURCES[dataset].is_present(tmp_path)
    assert max(map(mirror.count, mirror)) <= 2  # torchvision's look for a redirect, and its download


def test_a_download_that_is_not_the_published_file_is_refused(dataset, mirror, monkeypatch, tmp_path):
    theirs = vision.SOURCES[dataset].torchvision_class()
    if dataset == "svhn":
        parts = {part: [url, file, "0" * 32] for part, (url, file, _) in theirs.split_list.items()}
        monkeypatch.setattr(theirs, "split_list", parts)
    else:
        monkeypatch.setattr(theirs, "tgz_md5", "0" * 32)
    with pytest.raises(UserError, match=rf"{dataset} is not in {tmp_path} .*corrupted.*put its files there"):
        ensure_present(dataset, str(tmp_path))
    assert not vision.SOURCES[dataset].is_present(tmp_path)
