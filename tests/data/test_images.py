"""Image files and resizing."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from sglr_flower.data import images
from sglr_flower.data.images import read_image, read_picture, resize
from sglr_flower.data.options import Options
from sglr_flower.errors import UserError


def levels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(("source", "size"), [((28, 28), 32), ((96, 96), 48), ((32, 32), 64), ((20, 50), 32)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resize_is_torchvisions_on_pil_images(source, size, channels):
    pixels = levels(*source, channels)
    ours = resize(torch.from_numpy(pixels).permute(2, 0, 1)[None], size)[0]
    theirs = np.asarray(transforms.Resize((size, size))(Image.fromarray(pixels.squeeze())))
    assert ours.dtype == torch.uint8
    difference = np.abs(ours.permute(1, 2, 0).squeeze().numpy().astype(int) - theirs)
    assert difference.max() <= (0 if source[0] == source[1] else 1)


def test_resize_leaves_images_of_the_size_as_they_are():
    stored = torch.from_numpy(levels(2, 3, 8, 8))
    assert resize(stored, 8) is stored


def test_read_image_resizes_and_keeps_colours_apart(tmp_path):
    pixels = levels(40, 20, 3)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    ours = read_image(tmp_path / "image.png", 3, 16)
    theirs = transforms.Resize((16, 16))(Image.fromarray(pixels))
    assert ours.is_contiguous()
    assert np.array_equal(ours.permute(1, 2, 0), np.asarray(theirs))


def test_read_image_makes_grey(tmp_path):
    Image.fromarray(levels(16, 16, 3)).save(tmp_path / "image.png")
    expected = np.asarray(Image.open(tmp_path / "image.png").convert("L"))
    assert np.array_equal(read_image(tmp_path / "image.png", 1, 16)[0], expected)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    image = Image.new("RGB", (10, 10), (255, 255, 255)).convert(mode)
    file = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(file)
    read = read_image(file, 3, 8)
    assert read.shape == (3, 8, 8)
    assert read.eq(255).all()


def test_sixteen_bits_become_eight_without_clipping(tmp_path):
    grey = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "image.png")
    read = read_image(tmp_path / "image.png", 3, 16)
    assert torch.equal(read[0].flatten().int(), torch.arange(256, dtype=torch.int32))


@pytest.mark.parametrize(
    ("values", "bits"),
    [(np.arange(256), 8), (np.arange(256) << 2, 10), (np.arange(256) << 4, 12), (np.arange(256) << 6, 14)],
)
def test_values_of_fewer_bits_than_their_file_keep_their_range(tmp_path, values, bits):
    Image.fromarray(values.astype(np.uint16).reshape(16, 16)).save(tmp_path / "image.tif")
    every = torch.arange(256, dtype=torch.uint8).expand(3, -1)
    assert torch.equal(read_image(tmp_path / "image.tif", 3, 16).flatten(1), every)
    assert torch.equal(read_image(tmp_path / "image.tif", 3, 16, Options(levels=str(bits))).flatten(1), every)
    darker = read_image(tmp_path / "image.tif", 1, 16, Options(levels="16")).flatten()
    assert torch.equal(darker.int(), torch.arange(256, dtype=torch.int32) >> (16 - bits))


@pytest.mark.parametrize(
    ("low", "high", "dtype", "levels"),
    [
        (0.0, 1.0, np.float32, "auto"),
        (-3.0, 5.0, np.float32, "auto"),
        (0.0, 2.0, np.float32, "0:2"),
        (-70_000, 900_000, np.int32, "auto"),
    ],
)
def test_values_of_32_bits_have_their_own_range(tmp_path, low, high, dtype, levels):
    values = np.linspace(low, high, 256).astype(dtype)
    Image.fromarray(values.reshape(16, 16)).save(tmp_path / "image.tif")
    read = read_image(tmp_path / "image.tif", 1, 16, Options(levels=levels)).flatten()
    assert (read.int() - torch.arange(256)).abs().max() <= (dtype is np.int32)  # whole numbers are rounded before


def test_values_that_are_no_numbers_are_black(tmp_path):
    values = np.array([[np.nan, 0.0], [0.5, 1.0]], np.float32)
    Image.fromarray(values).save(tmp_path / "image.tif")
    assert read_image(tmp_path / "image.tif", 1, 2).flatten().tolist() == [0, 0, 128, 255]


@pytest.mark.parametrize(
    ("ground", "seen"), [("white", [255] * 3), ("black", [0] * 3), ("#0080ff", [0, 128, 255]), ("none", [10, 20, 30])]
)
def test_what_is_seen_through_a_transparent_image(tmp_path, ground, seen):
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png", 3, 8, Options(ground=ground))[:, 4, 4].tolist() == seen


def test_a_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "image.gif", transparency=1)
    assert read_image(tmp_path / "image.gif", 3, 8)[:, 4, 4].tolist() == [255, 255, 255]


def test_of_several_frames_the_first(tmp_path):
    frames = [Image.new("L", (8, 8), level) for level in (50, 200)]
    frames[0].save(tmp_path / "image.gif", save_all=True, append_images=frames[1:])
    read = read_picture(tmp_path / "image.gif", 1, 8)
    assert read.frames
    assert read.pixels.eq(50).all()


def test_a_very_large_jpeg_is_read_small_and_others_are_one_sentence(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(images, "_MOST_PIXELS", 200 * 200)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow itself would refuse both
    Image.new("RGB", (800, 600), (0, 200, 0)).save(tmp_path / "large.jpg")
    Image.new("RGB", (800, 600), (0, 200, 0)).save(tmp_path / "large.png")
    assert read_image(tmp_path / "large.jpg", 3, 16)[1].float().mean() == pytest.approx(200, abs=2)
    with pytest.raises(UserError, match=r"large\.png cannot be read \(800 x 600 pixels, more than 0 million\)"):
        read_image(tmp_path / "large.png", 3, 16)
    assert not recwarn.list
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_photo_is_turned_upright(tmp_path):
    image = Image.new("RGB", (64, 64), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 64, 32))  # white above
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to see it upright": white to the right
    image.save(tmp_path / "photo.jpg", exif=exif)
    read = read_image(tmp_path / "photo.jpg", 1, 8)[0].float()
    assert read[:, :3].max() < 50
    assert read[:, 5:].min() > 200


def test_a_large_jpeg_decoded_small_shows_the_same(tmp_path):
    smooth = np.add.outer(np.linspace(0, 120, 800), np.linspace(0, 120, 600)).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "photo.jpg", quality=95)
    whole = np.asarray(Image.open(tmp_path / "photo.jpg").resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(read_image(tmp_path / "photo.jpg", 1, 32)[0].numpy().astype(int) - whole).max() <= 3


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("length", [0, 30, 500])
def test_a_file_cut_short_is_one_sentence(tmp_path, suffix, length):
    file = tmp_path / f"cut.{suffix}"
    Image.fromarray(levels(64, 64, 3)).save(file)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UserError, match=rf"Image file .*cut\.{suffix} .*mend or remove it\.$"):
        read_image(file, 3, 16)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.png cannot be read \(No such file or directory\)"):
        read_image(tmp_path / "none.png", 3, 16)
