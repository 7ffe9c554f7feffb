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


GREY = np.array([[0, 40, 128], [200, 254, 255]], np.uint8)
COLOUR = np.random.RandomState(0).randint(0, 256, (5, 7, 3), np.uint8)
# how a picture may lie in a file -> (Pillow's picture, how it is written, what is read)
READ_RIGHT = {
    '16 bit.png': (Image.fromarray(GREY.astype(np.uint16) * 257), {}, GREY),
    '16 bit and dark.png': (Image.fromarray(GREY.astype(np.uint16)), {}, GREY * 0),
    '16 bit.tif': (Image.fromarray(GREY.astype(np.uint16) * 257), {}, GREY),
    '16 bit, 0 is white.tif': (Image.fromarray(GREY.astype(np.uint16) * 257), dict(tiffinfo={262: 0}), 255 - GREY),
    '16 bit.pgm': (Image.fromarray(GREY.astype(np.uint16) * 257), {}, GREY),
    'floats to 1.tif': (Image.fromarray(GREY.astype(np.float32) / 255), {}, GREY),
    'floats to 255.tif': (Image.fromarray(GREY.astype(np.float32)), {}, GREY),
    '32 bit.tif': (Image.fromarray(GREY.astype(np.int32)), {}, GREY),
    '1 bit.png': (Image.fromarray(GREY > 100), {}, (GREY > 100).astype(np.uint8) * 255),
    '1 bit.tif': (Image.fromarray(GREY > 100), dict(compression='group4'), (GREY > 100).astype(np.uint8) * 255),
    'palette.png': (Image.fromarray(COLOUR // 64 * 64).quantize(64, dither=0), {}, COLOUR // 64 * 64),
    'palette, partly clear.png': (Image.fromarray(COLOUR // 64 * 64).quantize(64, dither=0), dict(transparency=bytes(range(64))),
                                  COLOUR // 64 * 64),
    'grey, partly clear.png': (Image.merge('LA', [Image.fromarray(GREY), Image.fromarray(255 - GREY)]), {}, GREY),
    'colour, partly clear.png': (Image.fromarray(np.concatenate([COLOUR, COLOUR[..., :1]], -1)), {}, COLOUR),
    'for print.tif': (Image.fromarray(255 - np.concatenate([COLOUR, COLOUR[..., :1] * 0 + 255], -1), 'CMYK'), {}, COLOUR),
}


@pytest.mark.filterwarnings('error')
@pytest.mark.filterwarnings('ignore:.*mode:DeprecationWarning')
@pytest.mark.parametrize('name', READ_RIGHT)
def test_pictures_of_every_kind(name, tmp_path):
    picture, options, expected = READ_RIGHT[name]
    picture.save(tmp_path / name, **options)
    found = read_image(tmp_path / name)
    assert found.mode == 'RGB'
    assert np.array_equal(np.asarray(found), expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, -1))


@pytest.mark.parametrize('values', [
    np.array([[0, 300.]], np.float32), np.array([[-.1, 1]], np.float32), np.array([[0, np.nan]], np.float32),
    np.array([[0, np.inf]], np.float32), np.array([[0, 1000]], np.int32), np.array([[-1, 5]], np.int32)], ids=str)
def test_numbers_without_a_white_are_refused(values, tmp_path):
    Image.fromarray(values).save(tmp_path / 'x.tif')
    with pytest.raises(ValueError, match='expected 8 or 16 bit, or floats from 0 to 1'):
        read_image(tmp_path / 'x.tif')


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path):
    Image.new('1', (10_000, 9_000)).save(tmp_path / 'bomb.png')
    assert (tmp_path / 'bomb.png').stat().st_size < 20_000
    with pytest.raises(Image.DecompressionBombWarning):
        read_image(tmp_path / 'bomb.png')


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('deep', [False, True])
def test_every_way_to_hold_a_camera(orientation, deep, tmp_path):
    upright = COLOUR if not deep else COLOUR[..., 0].astype(np.uint16) * 257
    turn = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: np.swapaxes(a, 0, 1),
            6: lambda a: np.rot90(a, 1), 7: lambda a: np.swapaxes(np.rot90(a, 2), 0, 1), 8: lambda a: np.rot90(a, -1)}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(turn(upright))).save(tmp_path / 'x.png', exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / 'x.png'))[..., 0], COLOUR[..., 0])


@pytest.mark.parametrize('change, message', [
    (dict(size=(2, 8, 8)), 'size='), (dict(size=(3, 8)), 'size='), (dict(size=(3, 8, 0)), 'size='), (dict(size=(3, 8., 8)), 'size='),
    (dict(size='3'), 'size='), (dict(size=None), 'size='), (dict(size=(3, 10 ** 5, 10 ** 5)), 'pixels'), (dict(mean=(.5, .5)), 'as many'),
    (dict(mean=(.5, .5, '0')), 'mean='), (dict(mean=.5), 'mean='), (dict(std=(.5, 0, .5)), 'std='),
    (dict(std=(.5, float('nan'), 1)), 'std='), (dict(std=(True,) * 3), 'std='),
    (dict(crop_pct=0), 'crop_pct='), (dict(crop_pct=float('nan')), 'crop_pct='),
    (dict(crop_pct='1'), 'crop_pct='), (dict(crop_pct=1e9), 'crop_pct='), (dict(interpolation=3), 'interpolation='),
    (dict(interpolation='x' * 9999), 'interpolation=')], ids=lambda v: str(v)[:40])
def test_preparation_that_makes_no_sense(change, message):
    with pytest.raises(ValueError, match=message) as error:
        Preprocessing(**{**dict(size=(3, 8, 8), mean=(.5,) * 3, std=(.5,) * 3, interpolation='bicubic', crop_pct=.9), **change})
    assert len(str(error.value)) < 400


def test_an_image_so_narrow_that_it_would_fill_the_memory_is_refused():
    prepare = Preprocessing((3, 224, 224), (.5,) * 3, (.5,) * 3, 'bicubic', .9)
    with pytest.raises(ValueError, match='an image of 1x60000 would have'):
        prepare(Image.new('RGB', (1, 60000)))
    assert prepare.fit(Image.new('RGB', (1, 60000)))[1] == (1, 224)
