import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedsim.data.images import channel_stats, read_image
from fedsim.errors import InputError

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def saved(folder: Path, pixels: np.ndarray, **options: object) -> Path:
    path = folder / "image.png"
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def test_an_image_comes_back_pixel_for_pixel(tmp_path: Path) -> None:
    path = saved(tmp_path, PIXELS)
    assert np.array_equal(read_image(path), PIXELS)
    assert np.array_equal(read_image(io.BytesIO(path.read_bytes()), (4, 6)), PIXELS)
    grey = read_image(saved(tmp_path, PIXELS[..., 0]), channels=1)
    assert np.array_equal(grey, PIXELS[..., :1])


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = [0, 255, 51]  # black at alpha 0, 1 and 0.2
    assert read_image(saved(tmp_path, rgba))[0, :, 0].tolist() == [255, 0, 204]


def test_sizes_squash_the_whole_or_crop_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((2, 6, 3), np.uint8)
    wide[:, 2:4] = 255
    path = saved(tmp_path, wide)
    assert (read_image(path, (2, 2), fit="crop") == 255).all()
    squashed = read_image(path, (2, 3))
    assert squashed.shape == (2, 3, 3)
    assert squashed[0, 1, 0] > 200 > 50 > squashed[0, 0, 0]


def test_a_photograph_is_turned_as_its_tag_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = read_image(saved(tmp_path, PIXELS, exif=exif))
    assert np.array_equal(turned, np.rot90(PIXELS, -1))


@pytest.mark.parametrize("damage", ["cut", "text", "missing", "empty"])
def test_what_is_no_image_is_named(tmp_path: Path, damage: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = saved(tmp_path, noise)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:2000])
    elif damage == "text":
        path.write_text("not an image")
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    with pytest.raises(InputError, match=r"image\.png is no image that can be read"):
        read_image(path)
    with pytest.raises(InputError, match="row 3 of x is no image"):
        read_image(io.BytesIO(b"GIF89a"), name="row 3 of x")


def test_stats_are_those_of_numpy() -> None:
    x = np.random.default_rng(1).integers(0, 256, (9, 5, 4, 3), dtype=np.uint8)
    x[..., 2] = 51
    mean, std = channel_stats(x)
    expected = x / 255
    assert np.allclose(mean, expected.mean((0, 1, 2)), atol=1e-12)
    assert np.allclose(std[:2], expected.std((0, 1, 2))[:2], atol=1e-12)
    assert std[2] == pytest.approx(1.0)
    assert mean[2] == pytest.approx(0.2)
