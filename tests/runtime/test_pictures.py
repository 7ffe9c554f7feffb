"""Pictures of what was found: sizes, colours where they belong, and clear errors."""
import numpy as np
import pytest
from PIL import Image

from vitzoo_runtime.pictures import clearest, contact_sheet, draw_detections, draw_segmentation, palette

GREY = np.full((128, 160, 3), 128, np.uint8)


def test_palette_is_stable_and_distinct():
    assert palette(5) == palette(200)[:5]
    assert len(set(palette(200))) == 200 and palette(0) == []


def test_detections_show_where_they_are():
    masks = np.zeros((1, 128, 160), bool)
    masks[0, 50:70, 40:80] = True
    picture = draw_detections(GREY, [[30, 40, 90, 80]], [1], [.9], masks, ['cat', 'dog'])
    assert picture.size == (640, 512)  # enlarged by a whole factor
    pixels = np.asarray(picture).astype(int)
    assert tuple(pixels[60 * 4, 30 * 4]) == palette(2)[1]  # left edge of the box
    assert abs(pixels[60 * 4, 60 * 4] - (0.4 * 128 + 0.6 * np.array(palette(2)[1]))).max() <= 2  # inside the mask
    assert (pixels[110 * 4, 120 * 4] == 128).all()  # far from it


def test_the_best_detection_lies_on_top():
    same = [[30, 40, 90, 80]] * 2
    for scores, top in ([.9, .2], 0), ([.2, .9], 1):
        pixels = np.asarray(draw_detections(GREY, same, [0, 1], scores))
        assert tuple(pixels[60 * 4, 30 * 4]) == palette(2)[top]


def test_tags_do_not_hide_each_other():
    """Two objects in one place: both labels are there, which takes twice the area."""
    def tagged(boxes):
        plain = np.asarray(draw_detections(GREY, boxes, [0] * len(boxes), class_names=['']))
        return (np.asarray(draw_detections(GREY, boxes, [0] * len(boxes), class_names=['a long name'])) != plain).any(-1).sum()
    assert tagged([[30, 40, 90, 80]] * 2) > 1.8 * tagged([[30, 40, 90, 80]])


@pytest.mark.parametrize('box', [[0, 0, 160, 128], [-20, -20, 5, 5], [155, 120, 300, 300], [50, 50, 50, 50], [10.4, 3.2, 12.1, 3.3]])
def test_odd_boxes(box):
    assert draw_detections(GREY, [box], [0], [.5], class_names=['a very long name ' * 8]).size == (640, 512)


def test_nothing_found():
    empty = draw_detections(GREY, np.zeros((0, 4)), [], [], np.zeros((0, 128, 160), bool), ['cat'])
    assert (np.asarray(empty) == 128).all()


def test_large_and_grey_images_and_pictures():
    assert draw_detections(np.zeros((700, 900), np.uint8), [[5, 5, 50, 50]]).size == (900, 700)
    assert draw_detections(Image.new('L', (100, 10)), [], size=50).size == (100, 10)


@pytest.mark.parametrize('arguments, message', [
    (dict(labels=[1, 2]), '1 boxes, but 2 labels'),
    (dict(scores=[]), '1 boxes, but 0 scores'),
    (dict(masks=np.zeros((1, 20, 20), bool)), 'expected the same height and width'),
])
def test_numbers_that_disagree(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_detections(GREY, [[1, 2, 3, 4]], **arguments)


def test_the_clearest_of_many_boxes():
    few = np.array([[0, 0, 10, 10]] * 40)
    assert sorted(clearest(few, np.arange(40))) == list(range(40))
    # a grid of 49 boxes that do not touch, each with a worse one almost in its place
    places = np.array([[20 * x, 20 * y, 20 * x + 10, 20 * y + 10] for x in range(7) for y in range(7)])
    boxes, scores = np.concatenate([places + 1, places]), np.concatenate([np.full(49, .5), np.linspace(.6, .9, 49)])
    assert list(clearest(boxes, scores)) == list(range(97, 57, -1))
    assert set(clearest(boxes, scores, most=60)) == set(range(49, 98))
    assert len(clearest(np.zeros((50, 4)), np.zeros(50))) == 40


def test_segmentation_tints_by_class_and_leaves_the_rest():
    labels = np.zeros((128, 160), np.uint8)
    labels[:64, :80] = 2
    labels[64:, 80:] = 255
    picture = draw_segmentation(GREY, labels, ['background', 'cat', 'dog'])
    assert picture.height == 512 and picture.width > 640  # a legend stands beside it
    pixels = np.asarray(picture).astype(int)
    assert abs(pixels[100, 100] - (0.4 * 128 + 0.6 * np.array(palette(3)[2]))).max() <= 2
    assert (pixels[100, 600] == 128).all() and (pixels[500, 600] == 128).all()
    with pytest.raises(ValueError, match='same height and width'):
        draw_segmentation(GREY, labels[:-1])


def test_segmentation_where_all_is_ignored():
    assert draw_segmentation(GREY, np.full((128, 160), 255)).height == 512


def test_contact_sheet():
    tiles = [Image.new('RGB', (40, 30), colour) for colour in ('red', 'lime', 'blue')]
    sheet = contact_sheet(tiles, 2, gap=5)
    assert sheet.size == (2 * 45 + 5, 2 * 35 + 5)
    found = [sheet.getpixel(at) for at in ((20, 20), (70, 20), (20, 55), (70, 55))]
    assert found == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    assert contact_sheet(tiles, 9, titles=['a', 'b', 'c']).height > 46
    for bad in ([], 2), (tiles, 0):
        with pytest.raises(ValueError, match='at least one'):
            contact_sheet(*bad)
    with pytest.raises(ValueError, match='2 titles'):
        contact_sheet(tiles, titles=['a', 'b'])
