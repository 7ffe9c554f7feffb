"""Images as they are read, and as they become the input of a model."""
import numpy as np
import pytest
from PIL import Image

from vitzoo_runtime.images import Preprocessing, read_image


def textured(width, height):
    """A picture in which a shift by one pixel or another filter is seen."""
    return Image.fromarray(np.random.RandomState(width * height).randint(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize('interpolation', ['bicubic', 'bilinear', 'nearest', 'lanczos'])
@pytest.mark.parametrize('size, crop_pct', [((24, 24), .875), ((32, 32), 1.), ((21, 33), .9), ((24, 24), 1.15), ((40, 17), .95)])
def test_same_pixels_as_timm(size, crop_pct, interpolation):
    data = pytest.importorskip('timm.data')
    mean, std = (.48, .45, .4), (.22, .23, .21)
    ours = Preprocessing((3, *size), mean, std, interpolation, crop_pct)
    theirs = data.create_transform((3, *size), is_training=False, mean=mean, std=std, interpolation=interpolation, crop_pct=crop_pct)
    for width, height in (48, 48), (61, 37), (37, 62), (10, 13), (24, 200), (32, 32):
        image = textured(width, height)
        assert np.array_equal(ours(image)[0], theirs(image).numpy()), (width, height)


def test_grey_input():
    grey = Preprocessing((1, 8, 8), (.5,), (.25,), 'bilinear', 1.)
    image = textured(20, 16)
    x = grey(image)
    assert x.shape == (1, 1, 8, 8)
    assert np.allclose(x[0, 0] * .25 + .5, np.asarray(grey.crop(image.convert('L'))) / 255)


def test_images_are_turned_as_the_camera_was_and_16_bit_is_scaled(tmp_path):
    picture = textured(6, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held a quarter turn
    picture.save(tmp_path / 'turned.png', exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / 'turned.png')), np.rot90(np.asarray(picture), -1))
    deep = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    Image.fromarray(deep).save(tmp_path / 'deep.png')
    assert np.array_equal(np.asarray(read_image(tmp_path / 'deep.png'))[..., 0], deep // 257)
