"""Image files and resizing."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from sglr_flower.data.images import read_image, resize
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
    images = torch.from_numpy(levels(2, 3, 8, 8))
    assert resize(images, 8) is images


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


def test_levels_of_unknown_range_are_refused(tmp_path):
    Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)).save(tmp_path / "image.tif")
    with pytest.raises(UserError, match=r"image\.tif has levels of 32 bits"):
        read_image(tmp_path / "image.tif", 3, 16)


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
