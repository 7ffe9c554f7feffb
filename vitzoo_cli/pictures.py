"""Pictures of what an ONNX file says about an image, with pillow and numpy alone."""
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GREY, WHITE, BAR = (24, 26, 31), (240, 242, 245), (45, 108, 181)
HEAT = np.array([(13, 8, 135), (126, 3, 168), (204, 71, 120), (248, 149, 64), (240, 249, 33)], np.float32)  # dark to bright


def fit(image: Image.Image, longest: int = 480) -> Image.Image:
    """The image scaled, keeping its proportions, until its longer side is `longest`."""
    scale = longest / max(image.size)
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)


def classification(image: Image.Image, classes: Sequence[dict]) -> Image.Image:
    """The image over a list of its likeliest classes with bars for their probabilities; `classes` as `OnnxModel.classify` gives them."""
    image, row, margin = fit(image), 30, 12
    width = max(image.width, 320)
    sheet = Image.new('RGB', (width, image.height + row * len(classes) + margin), GREY)
    sheet.paste(image, ((width - image.width) // 2, 0))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for i, c in enumerate(classes):
        top = image.height + margin // 2 + i * row
        share = f'{c["probability"]:.1%}'
        space = width - 3 * margin - draw.textlength(share, font)
        draw.rectangle((margin // 2, top + 2, margin // 2 + round((width - margin) * c['probability']), top + row - 3), fill=BAR)
        draw.text((margin, top + row / 2), _shorten(c['name'], space, font), WHITE, font, anchor='lm')
        draw.text((width - margin, top + row / 2), share, WHITE, font, anchor='rm')
    return sheet


def _shorten(text: str, space: float, font) -> str:
    if font.getlength(text) <= space:
        return text
    while text and font.getlength(f'{text}...') > space:
        text = text[:-1]
    return f'{text.rstrip()}...'


def features(crop: Image.Image, maps: dict[str, np.ndarray]) -> Image.Image:
    """What the model saw, and beside it for every (C, H, W) map the lengths of its vectors, from dark for short to bright for long."""
    crop = fit(crop, 240)
    gap, header = 8, 26
    panels = [('input', crop)]
    for name, values in maps.items():
        lengths = np.linalg.norm(values, axis=0)
        span = float(np.ptp(lengths)) or 1.
        position = (lengths - lengths.min()) / span * (len(HEAT) - 1)
        low = np.minimum(position.astype(int), len(HEAT) - 2)
        colours = HEAT[low] + (HEAT[low + 1] - HEAT[low]) * (position - low)[..., None]
        panel = Image.fromarray(colours.round().astype(np.uint8)).resize(crop.size, Image.Resampling.NEAREST)
        panels.append((f'{name}  {"x".join(map(str, values.shape))}', panel))
    sheet = Image.new('RGB', ((crop.width + gap) * len(panels) + gap, crop.height + header + gap), GREY)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, (title, panel) in enumerate(panels):
        left = gap + i * (crop.width + gap)
        draw.text((left, header / 2), title, WHITE, font, anchor='lm')
        sheet.paste(panel, (left, header))
    return sheet
