"""Pictures of what models find in an image, with pillow and numpy alone."""
import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from PIL.PngImagePlugin import PngInfo

from .files import MARK, replacing
from .terminal import printable

INK, PAPER = (24, 26, 31), (255, 255, 255)
CHALK, BAR = (240, 242, 245), (45, 108, 181)  # on sheets of ink
HEAT = np.array([(13, 8, 135), (126, 3, 168), (204, 71, 120), (248, 149, 64), (240, 249, 33)], np.float32)  # dark to bright
# told apart at a glance, also by most people with a colour vision deficiency (after Okabe and Ito), then spread over the colour wheel
_FIRST = [(230, 159, 0), (86, 180, 233), (0, 158, 115), (213, 94, 0), (204, 121, 167), (240, 228, 66), (0, 114, 178), (153, 79, 0),
          (148, 103, 189), (122, 199, 79)]


def palette(num: int) -> list[tuple[int, int, int]]:
    """`num` RGB colours; the first ones stay the same however many there are."""
    more = [colorsys.hsv_to_rgb((0.05 + 0.618034 * i) % 1, 0.9 if i % 3 == 0 else 0.55, 0.95 if i % 2 == 0 else 0.75)
            for i in range(num - len(_FIRST))]
    return [*_FIRST, *(tuple(round(255 * v) for v in colour) for colour in more)][:num]


def heat_colours(values: np.ndarray) -> np.ndarray:
    """Values from 0 to 1 (...) -> RGB (..., 3) from dark to bright."""
    position = values * (len(HEAT) - 1)
    low = np.minimum(position.astype(int), len(HEAT) - 2)
    return HEAT[low] + (HEAT[low + 1] - HEAT[low]) * (position - low)[..., None]


def enlarged(image: Image.Image | np.ndarray, size: int) -> tuple[Image.Image, int]:
    """A picture enlarged by a whole factor until its longer side is at least `size`, and the factor."""
    image = _picture(image)
    factor = _factor(image.size, size)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC), factor


def draw_detections(
        image: Image.Image | np.ndarray,
        boxes: np.ndarray,
        labels: Sequence[int] | None = None,
        scores: Sequence[float] | None = None,
        masks: np.ndarray | None = None,
        class_names: Sequence[str] | None = None,
        *,
        opacity: float = 0.6,
        size: int = 640,
) -> Image.Image:
    """Draw boxes, masks and names over an image.

    Args:
        image: a picture, or an array (H, W, 3) or (H, W) of uint8.
        boxes: (N, 4), left, top, right, bottom in pixels of the image.
        labels: (N,), class indices; they give the colours.
        scores: (N,); the best is drawn last, on top.
        masks: (N, H, W), bool.
        class_names: by label; the index stands for a class without a name.
        opacity: of the colour inside masks, 0 to 1.
        size: a smaller image is enlarged by a whole factor until its longer side is at least this long, so that text is legible.

    Raises:
        ValueError: if the numbers of boxes, labels, scores and masks, or the sizes of masks and image, do not agree.
    """
    image = _picture(image)
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    labels = np.zeros(len(boxes), int) if labels is None else np.asarray(labels, int)
    for name, values in ('labels', labels), ('scores', scores), ('masks', masks):
        if values is not None and len(values) != len(boxes):
            raise ValueError(f'{len(boxes)} boxes, but {len(values)} {name}: expected one for each box')
    if masks is not None and len(masks) and np.shape(masks)[1:] != image.size[::-1]:
        raise ValueError(f'masks of {np.shape(masks)[1:]} for an image of {image.size[::-1]}: expected the same height and width')
    canvas, factor = enlarged(image, size)
    colours = palette(int(max(labels, default=0)) + 1)
    order = range(len(boxes)) if scores is None else np.argsort(scores, kind='stable')

    line = max(2, round(max(canvas.size) / 240))
    for i in order:
        if masks is not None:
            canvas = _tint(canvas, masks[i], colours[labels[i]], line, opacity)
    draw = ImageDraw.Draw(canvas)
    for i in order:
        left, top, right, bottom = np.round(boxes[i] * factor).astype(int)
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colours[labels[i]], width=line)

    font = ImageFont.load_default(max(13, round(max(canvas.size) / 38)))
    taken = []
    for i in reversed(order):  # the best choose their places first
        text = _name(class_names, labels[i]) + ('' if scores is None else f'  {scores[i]:.2f}')
        place = _place_tag(boxes[i] * factor, _tag_size(text, font), canvas.size, taken)
        taken.append(place)
        colour = colours[labels[i]]
        draw.rectangle(place, fill=colour)
        draw.text(((place[0] + place[2]) / 2, (place[1] + place[3]) / 2), text, _on(colour), font, anchor='mm')
    return canvas


def clearest(boxes: np.ndarray, scores: np.ndarray, most: int = 40) -> np.ndarray:
    """Which boxes (N, 4) to draw, so that a picture of very many can be read: indices, best first.

    Up to `most` that is all of them. Of more, as a detector gives that has not learned much, those are left out whose intersection with a
    better one is more than half of their union, and of the rest all but the best `most`.
    """
    order = np.argsort(-np.asarray(scores), kind='stable')
    if len(order) <= most:
        return order
    boxes = np.asarray(boxes, np.float64)
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1)
    kept = []
    for i in order:
        common = (np.minimum(boxes[i, 2:], boxes[kept, 2:]) - np.maximum(boxes[i, :2], boxes[kept, :2])).clip(0).prod(1)
        if (common <= 0.5 * (areas[i] + areas[kept] - common)).all():
            kept.append(i)
        if len(kept) == most:
            break
    return np.array(kept)


def draw_segmentation(
        image: Image.Image | np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str] | None = None,
        *,
        ignore_index: int = 255,
        opacity: float = 0.6,
        size: int = 640,
) -> Image.Image:
    """Tint the regions of an image by class, with a legend of the classes there are and their shares.

    Args:
        image: a picture, or an array (H, W, 3) or (H, W) of uint8.
        labels: (H, W), a class index for every pixel; where it is `ignore_index`, the image stays as it is. A class called 'background'
            is not tinted either.
        class_names: by label; the index stands for a class without a name.
        opacity, size: as in `draw_detections`.

    Raises:
        ValueError: if the map and the image differ in size.
    """
    image, labels = _picture(image), np.asarray(labels)
    if labels.shape != image.size[::-1]:
        raise ValueError(f'a map of {labels.shape} for an image of {image.size[::-1]}: expected the same height and width')
    canvas, factor = enlarged(image, size)
    present, counts = np.unique(labels[labels != ignore_index], return_counts=True)
    colours = palette(int(max(present, default=0)) + 1)
    line = max(2, round(max(canvas.size) / 320))
    tinted = [i for i in present if _name(class_names, i) != 'background']
    for i in tinted:
        canvas = _tint(canvas, labels == i, colours[i], line, opacity)

    legend = [(colours[i] if i in tinted else (128, 128, 128), f'{_name(class_names, i)}  {count / labels.size:.1%}')
              for count, i in sorted(zip(counts, present, strict=True), reverse=True)]
    return _with_legend(canvas, legend)


def draw_classes(image: Image.Image, classes: Sequence[dict]) -> Image.Image:
    """The image over a list of its likeliest classes with bars for their probabilities; `classes` as `OnnxModel.classify` gives them."""
    image, row, margin = _fit(image), 30, 12
    width = max(image.width, 320)
    sheet = Image.new('RGB', (width, image.height + row * len(classes) + margin), INK)
    sheet.paste(image, ((width - image.width) // 2, 0))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for i, c in enumerate(classes):
        top = image.height + margin // 2 + i * row
        share = f'{c["probability"]:.1%}'
        space = width - 3 * margin - draw.textlength(share, font)
        draw.rectangle((margin // 2, top + 2, margin // 2 + round((width - margin) * c['probability']), top + row - 3), fill=BAR)
        draw.text((margin, top + row / 2), _shorten(printable(c['name']), space, font), CHALK, font, anchor='lm')
        draw.text((width - margin, top + row / 2), share, CHALK, font, anchor='rm')
    return sheet


def draw_features(crop: Image.Image, maps: dict[str, np.ndarray]) -> Image.Image:
    """What the model saw, and beside it for every (C, H, W) map the lengths of its vectors, from dark for short to bright for long."""
    crop = _fit(crop, 240)
    gap, header = 8, 26
    panels = [('input', crop)]
    for name, values in maps.items():
        lengths = np.linalg.norm(np.asarray(values, np.float64), axis=0)
        span = float(np.ptp(lengths)) or 1.
        colours = heat_colours((lengths - lengths.min()) / span)
        panel = Image.fromarray(colours.round().astype(np.uint8)).resize(crop.size, Image.Resampling.NEAREST)
        panels.append((f'{printable(name, 30)}  {"x".join(map(str, values.shape))}', panel))
    sheet = Image.new('RGB', ((crop.width + gap) * len(panels) + gap, crop.height + header + gap), INK)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, (title, panel) in enumerate(panels):
        left = gap + i * (crop.width + gap)
        draw.text((left, header / 2), title, CHALK, font, anchor='lm')
        sheet.paste(panel, (left, header))
    return sheet


def contact_sheet(images: Sequence[Image.Image | np.ndarray], columns: int = 4, *, titles: Sequence[str] | None = None,
                  gap: int = 8) -> Image.Image:
    """Images in rows of `columns`, each centred in a cell as large as the largest needs, with an optional title above each.

    Raises ValueError if there is no image, no column, or another number of titles.
    """
    images = [_picture(image) for image in images]
    if not images or columns < 1:
        raise ValueError(f'{len(images)} images in {columns} columns: expected at least one of each')
    if titles is not None and len(titles) != len(images):
        raise ValueError(f'{len(images)} images, but {len(titles)} titles')
    columns = min(columns, len(images))
    width, height = max(i.width for i in images), max(i.height for i in images)
    font = ImageFont.load_default(max(14, width // 26))
    header = round(font.size * 1.7) if titles else 0
    rows = -(-len(images) // columns)
    sheet = Image.new('RGB', (columns * (width + gap) + gap, rows * (height + header + gap) + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        left, top = gap + i % columns * (width + gap), gap + i // columns * (height + header + gap)
        if titles:
            draw.text((left + width / 2, top + header / 2), _shorten(titles[i], width, font), INK, font, anchor='mm')
        sheet.paste(image, (left + (width - image.width) // 2, top + header + (height - image.height) // 2))
    return sheet


def save_png(image: Image.Image, path: str | Path) -> None:
    """Write a picture whole or not at all, with the mark of one that a command made."""
    comment = PngInfo()
    comment.add_text('Comment', MARK)
    with replacing(path) as temporary:
        image.save(temporary, 'PNG', pnginfo=comment)


def _picture(image: Image.Image | np.ndarray) -> Image.Image:
    return (image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))).convert('RGB')


def _fit(image: Image.Image, longest: int = 480) -> Image.Image:
    """The image scaled, keeping its proportions, until its longer side is `longest`."""
    scale = longest / max(image.size)
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)


def _factor(image_size: tuple[int, int], size: int) -> int:
    return max(1, -(-size // max(image_size)))


def _name(class_names: Sequence[str] | None, label: int) -> str:
    return printable(class_names[label], 60) if class_names is not None and label < len(class_names) else str(label)


def _on(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """The text colour that is legible on `colour`."""
    return INK if np.dot(colour, (0.299, 0.587, 0.114)) > 120 else PAPER


def _tint(canvas: Image.Image, mask: np.ndarray, colour: tuple[int, int, int], line: int, opacity: float) -> Image.Image:
    """The canvas with the mask, enlarged with a smooth edge, outlined in the colour and filled with it, light and shade kept."""
    mask = Image.fromarray(np.asarray(mask, np.uint8) * 255)
    factor = canvas.width / mask.width
    smooth = mask.resize(canvas.size, Image.Resampling.BICUBIC)
    if factor > 1:
        smooth = smooth.filter(ImageFilter.GaussianBlur(0.35 * factor))
    inside = smooth.point(lambda v: min(255, max(0, 127 + 5 * (v - 127))))
    core = inside.filter(ImageFilter.MinFilter(2 * line - 1))
    flat = Image.new('RGB', canvas.size, colour)
    # over grey, so that every object of a class has the same hue
    filled = Image.composite(Image.blend(canvas.convert('L').convert('RGB'), flat, opacity), canvas, inside)
    return Image.composite(flat, filled, ImageChops.subtract(inside, core))


def _tag_size(text: str, font) -> tuple[int, int]:
    return round(font.getlength(text) + font.size * 0.7), round(font.size * 1.35)


def _shorten(text: str, space: float, font) -> str:
    if font.getlength(text) <= space:
        return text
    while text and font.getlength(f'{text}...') > space:
        text = text[:-1]
    return f'{text.rstrip()}...'


def _place_tag(box: np.ndarray, size: tuple[int, int], canvas: tuple[int, int], taken: list) -> tuple[int, int, int, int]:
    """Above the box, inside its top, below it or inside its bottom: the first place within the canvas that hides no other tag."""
    (left, top, right, bottom), (width, height) = box, size
    best, least = None, float('inf')
    for x in (left, right - width):
        for y in (top - height, top, bottom, bottom - height):
            a = round(min(max(x, 0), canvas[0] - width))
            b = round(min(max(y, 0), canvas[1] - height))
            place = a, b, a + width, b + height
            hidden = sum(max(0, min(place[2], t[2]) - max(a, t[0])) * max(0, min(place[3], t[3]) - max(b, t[1])) for t in taken)
            if hidden < least:
                best, least = place, hidden
    return best


def _with_legend(canvas: Image.Image, legend: Sequence[tuple[tuple[int, int, int], str]]) -> Image.Image:
    font = ImageFont.load_default(max(13, round(max(canvas.size) / 38)))
    row, margin = round(font.size * 1.6), round(font.size * 0.6)
    width = round(max((font.getlength(text) for _, text in legend), default=0)) + row + 2 * margin
    sheet = Image.new('RGB', (canvas.width + width, max(canvas.height, row * len(legend) + 2 * margin)), PAPER)
    sheet.paste(canvas, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for i, (colour, text) in enumerate(legend):
        left, middle = canvas.width + margin, margin + row * (i + 0.5)
        side = row * 0.6
        draw.rectangle((left, middle - side / 2, left + side, middle + side / 2), fill=colour)
        draw.text((left + row * 0.9, middle), text, INK, font, anchor='lm')
    return sheet
