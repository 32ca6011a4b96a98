"""What people report of other tools for image folders, federated and split learning, as small inputs of our own.

Each test names the thread whose situation it has: owner/repository#number.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import case_models
import folders
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch import nn
from torch.nn import functional as F

import sglr_flower as sglr
from sglr_flower.data import datasets
from sglr_flower.data.images import read_image
from sglr_flower.data.options import Options
from sglr_flower.errors import Diverged, UserError
from sglr_flower.run import checks, inprocess
from sglr_flower.run.config import RunConfig

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 3


def notes(root: Path) -> list[str]:
    return datasets.notes("folder", str(root), 0, 40, Options())


def refused(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        notes(root)
    return str(caught.value)


def learning(*clients: Any, upper: Any = None, **settings: Any) -> sglr.SplitLearning:
    return sglr.SplitLearning(
        lower=lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(8)),
        upper=upper or (lambda: nn.Sequential(nn.ReLU(), nn.Linear(8, 3))),
        clients=clients,
        optimizer=lambda weights: torch.optim.SGD(weights, lr=0.1),
        **settings,
    )


# Folders


def test_classes_go_by_their_names_where_test_lacks_one(tmp_path: Path) -> None:
    """Class folders 1 to 11, of which test has all but 10 (pytorch/vision#714, ultralytics/ultralytics#13936)."""
    for number in range(1, 12):
        for part, count in (("train", 6), ("test", 2)):
            if (part, number) != ("test", 10):
                folder = tmp_path / part / str(number)
                folder.mkdir(parents=True)
                for copy in range(count):
                    Image.new("L", (40, 40), 10 * number + copy).save(folder / f"{copy}.png")

    source = datasets.load("folder", str(tmp_path), 0, 40)

    assert source.classes == tuple(sorted(map(str, range(1, 12))))
    test = source.test.take(torch.arange(len(source.test)))
    seen = [int(level) // 10 for level in test.images[:, 0, 0, 0]]
    assert [int(source.classes[label]) for label in test.labels.tolist()] == seen
    assert len(seen) == 20


@pytest.mark.parametrize("kind", ["png", "tif", "webp"])
def test_all_eight_ways_to_hold_a_camera_are_turned_upright(kind: str, tmp_path: Path) -> None:
    """Mirrored ones too (open-edge-platform/datumaro#1756, ultralytics/yolov5#405)."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    flipped, turned = pixels[:, ::-1], pixels.transpose(1, 0, 2)
    upright = [pixels, flipped, pixels[::-1, ::-1], pixels[::-1], turned, turned[:, ::-1]]
    upright += [turned[::-1, ::-1], turned[::-1]]
    for number, wanted in enumerate(upright, 1):
        exif = Image.Exif()
        exif[0x112] = number
        lossless = {"lossless": True} if kind == "webp" else {}
        Image.fromarray(pixels).save(tmp_path / f"{number}.{kind}", exif=exif, **lossless)
        read = read_image(tmp_path / f"{number}.{kind}", 3, 20)
        assert np.array_equal(read.permute(1, 2, 0).numpy(), wanted), number


def test_colours_are_those_that_are_seen_whatever_space_they_lie_in(tmp_path: Path) -> None:
    """CMYK photographs (cytsai/ilsvrc-cmyk-image-list#1, vlfeat/matconvnet#360), and other spaces."""
    grey = folders.levels(0, np.random.default_rng(0))
    image = Image.fromarray(np.stack([grey, grey // 2, 255 - grey], -1))
    profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    lab = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    assert lab is not None
    image.convert("CMYK").save(tmp_path / "photograph.jpg", quality=100)
    image.convert("CMYK").save(tmp_path / "print.tif")
    image.convert("YCbCr").save(tmp_path / "film.tif")
    lab.save(tmp_path / "lab.tif")
    wanted = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    for file in tmp_path.iterdir():
        assert (read_image(file, 3, 40).float() - wanted).abs().mean() < 5, file.name


def test_a_folder_val_is_said_not_to_be_read(tmp_path: Path) -> None:
    """Train and val is how most people divide theirs (pytorch/examples#928, pytorch/vision#613)."""
    folders.write(tmp_path)
    folders.write(tmp_path, 3, part="val")
    assert notes(tmp_path)[0].endswith("PNG 48; left out: folder val beside train (of which validation is drawn)")


@pytest.mark.parametrize(
    ("parts", "there"), [((".",), "disc, stripe"), (("Train", "Test"), "Test, Train")], ids=["classes", "capitals"]
)
def test_where_there_is_no_train_it_is_said_what_there_is(parts: tuple[str, ...], there: str, tmp_path: Path) -> None:
    """Class folders without a folder train around them (pytorch/vision#613, pytorch/examples#236)."""
    for part in parts:
        folders.write(tmp_path, 3, part=part)
    assert refused(tmp_path).endswith(f"(No such file or directory); it has the folders {there}")


def test_images_in_no_class_folder_are_counted(tmp_path: Path) -> None:
    """Some or all lie in train itself (facebookresearch/kill-the-bits#5)."""
    train = folders.write(tmp_path)
    for number in range(3):
        (train / "disc" / f"{number:03}.png").rename(train / f"{number}.PNG")
    assert notes(tmp_path)[0].endswith("PNG 45; left out: 3 image(s) in train itself, in no class folder")


def test_files_without_an_ending_are_named_where_a_class_has_no_image(tmp_path: Path) -> None:
    """No valid file is found, and yet they are there (pytorch/vision#707, dusty-nv/jetson-inference#1549)."""
    for file in [*folders.write(tmp_path).glob("disc/*.png")]:
        file.rename(file.with_suffix(""))
    assert "train/disc has no image (no ending 24 file(s)): add some (" in refused(tmp_path)


def test_endings_in_capitals_are_read(tmp_path: Path) -> None:
    """IMG_6003.JPG from a telephone (pytorch/vision#446, open-edge-platform/anomalib#3058)."""
    for file in [*folders.write(tmp_path, kind="jpg").glob("*/*.jpg")]:
        file.rename(file.with_suffix(".JPG"))
    assert notes(tmp_path) == [f"{tmp_path}: 48 images of 2 classes (disc 24, stripe 24), 40 x 40 pixels, JPEG 48"]


def test_links_are_followed_but_not_up_again(tmp_path: Path) -> None:
    """Class folders and images that are links (fastai/fastai#2270, huggingface/pytorch-image-models#334).

    A link to a folder above would give the images forty times, and those of the other class under this one's name.
    """
    train = folders.write(tmp_path)
    (train / "stripe").rename(tmp_path / "elsewhere")
    (train / "stripe").symlink_to(tmp_path / "elsewhere")
    (train / "disc" / "000.png").rename(tmp_path / "one.png")
    (train / "disc" / "000.png").symlink_to(tmp_path / "one.png")
    (train / "disc" / "again").symlink_to(train / "disc")
    (train / "disc" / "up").symlink_to(train)
    (train / "zebra").symlink_to(tmp_path / "not mounted")
    assert notes(tmp_path) == [
        f"{tmp_path}: 48 images of 2 classes (disc 24, stripe 24), 40 x 40 pixels, PNG 48; left out: "
        "link zebra in train, which leads nowhere"
    ]


def test_links_from_class_to_class_and_back_multiply_no_image(tmp_path: Path) -> None:
    train = folders.write(tmp_path)
    (train / "disc" / "others").symlink_to(train / "stripe")
    (train / "stripe" / "others").symlink_to(train / "disc")
    (tmp_path / "elsewhere").mkdir()
    (train / "disc" / "007.png").rename(tmp_path / "elsewhere" / "one.png")
    for name in ("here", "there"):
        (train / "disc" / name).symlink_to(tmp_path / "elsewhere")
    assert notes(tmp_path)[0].startswith(f"{tmp_path}: 96 images of 2 classes (disc 48, stripe 48)")


# Data sets, labels and inputs of their own


class Pictures:
    """A data set as people write it; its pictures are not tensors, or of several sizes, or cannot be opened."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if self.kind == "pil":
            return Image.new("RGB", (4, 4)), index % 3
        if self.kind == "sizes":
            return torch.zeros(1 if index == 7 else 3, 4, 4), index % 3
        return {"a.png": torch.zeros(3, 4, 4)}[f"{index}.png"], 0  # line of the mistake


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        # tristandeleu/pytorch-meta#35, OpenMined/PySyft#2243
        (
            "pil",
            "a sample of a data set must be tensors, arrays or numbers, and this one is (Image, int): of an ",
        ),
        # pytorch/pytorch#1904, lucidrains/denoising-diffusion-pytorch#97
        ("sizes", "the samples of a data set must have one shape, and these have (1, 4, 4) and (3, 4, 4): let it "),
        ("broken", "sample 0 of a data set cannot be had: KeyError: '0.png' ("),
    ],
)
def test_a_data_set_that_does_not_give_tensors_is_a_sentence(kind: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(said)}") as caught:
        list(learning(Pictures(kind)).rounds(1))
    line = next(n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "line of the mistake" in text)
    assert (f"test_reports.py:{line})" in str(caught.value)) == (kind == "broken")


def test_labels_that_do_not_begin_at_zero_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels from 1, or with -1 (open-mmlab/mmpretrain#507, GilLevi/AgeGenderDeepLearning#39)."""
    for shift, said in ((1, "from 1 to 3"), (-1, "from -1 to 1")):
        with pytest.raises(UserError, match=f"targets of client 0: labels {said}, not from 0 to 2"):
            learning((X, Y + shift))
    monkeypatch.setattr(case_models, "from_one", lambda: ((X, Y + 1), (X, Y + 1)), raising=False)
    assert datasets.notes("case_models:from_one", "", 0) == [
        "no sample is of class 0: class numbers begin at 0, and the least here is 1"
    ]


def test_one_hot_rows_are_said_to_have_no_accuracy() -> None:
    """Keras' to_categorical (flwrlabs/flower#3159), IGNF/FLAIR-1#9, pytorch/pytorch#1258."""
    with pytest.warns(UserWarning, match="so they are no classes and have no accuracy: for classes give each sample's"):
        learning((X, F.one_hot(Y, 3).float()))
    with pytest.raises(UserError, match=r"of shape \(3,\) .*\(\[n\], of one-hot rows targets.argmax\(1\)\)"):
        learning((X, F.one_hot(Y, 3)))
    with pytest.raises(UserError, match=r"multi-target not supported.*give each sample's class number, a whole one"):
        learning((X, Y.float()))


def test_images_with_their_channels_last_are_told_so() -> None:
    """As Keras and OpenCV have them."""
    with pytest.raises(UserError, match=r"inputs of shape \(8, 8, 3\): images have their channels first, inputs.perm"):
        learning((torch.zeros(12, 8, 8, 3, dtype=torch.uint8), torch.arange(12) % 3))


def test_an_input_that_is_no_number_is_not_called_a_rate_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pixel that is not a number made every weight so (londonaicentre/FLIP#764); its client is named."""
    spoilt = X.clone()
    spoilt[5, 2] = torch.nan
    with pytest.raises(Diverged, match=r"of client\(s\) 1 that are not finite: .* client-lr\), or inputs are not"):
        list(learning((X, Y), (spoilt, Y), (X, Y)).rounds(1))
    monkeypatch.setattr(case_models, "spoilt", lambda: ((X, Y), (X, Y), (spoilt, Y)), raising=False)
    assert datasets.notes("case_models:spoilt", "", 0) == [
        "1 of 24 test samples have inputs that are not finite",
    ]


# Networks and training


def test_what_works_in_place_right_above_the_cut_is_trained_as_if_it_did_not() -> None:
    """A ReLU of torchvision's networks is the server's first stage (pytorch/pytorch#727, szagoruyko/loadcaffe#19)."""
    losses = [
        [done.loss for done in learning((X, Y), upper=upper).rounds(3)]
        for upper in (
            lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 3)),
            lambda: nn.Sequential(nn.ReLU(), nn.Linear(8, 3)),
        )
    ]
    assert losses[0] == losses[1]
    assert losses[0][2] < losses[0][0]


def test_a_batch_size_above_all_that_a_client_has_is_its_one_batch() -> None:
    """alibaba/FederatedScope#123, AshwinRJ/Federated-Learning-PyTorch#37."""
    large, whole = (learning((X[:3], Y[:3]), (X, Y), batch_size=size) for size in (500, 24))
    (done,), (wanted,) = (list(run.rounds(1)) for run in (large, whole))
    assert (done.steps, done.samples, done.loss) == (1, 27, wanted.loss)
    for client in range(2):
        for own, other in zip(*(run.network(client).parameters() for run in (large, whole)), strict=True):
            assert torch.equal(own, other)


def test_accuracy_that_is_the_share_of_the_most_frequent_class_is_said(tmp_path: Path) -> None:
    """60 % from the first round, as 70 % are of one class (chandra2thapa/SplitFed-When-...#6)."""
    train = folders.write(tmp_path, 40, labels=("disc",))
    (train / "stripe").mkdir()
    for number, image in enumerate(folders.arrays(12)["stripe"]):
        Image.fromarray(image).save(train / "stripe" / f"{number}.png")
    values = {"dataset": "folder", "data-dir": str(tmp_path), "samples-per-client": 0, "num-clients": 2}
    quick = {"image-size": 16, "client-lr": 1e-12, "num-server-rounds": 3, "evaluate-samples": 0}
    config = RunConfig.parse({**values, **quick, "model": "alexnet"})
    checks.check(config)
    (said,) = inprocess.run(config.replace(run_dir=str(tmp_path / "run")))["warnings"]
    assert re.match(r"round 3 of 3: .*, no more than always answering 'disc' gives \(73% of them\): nothing has", said)
