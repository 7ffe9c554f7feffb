"""A few images that come with the installation: photographs inside scikit-learn's and matplotlib's wheels, and digit scenes."""
from PIL import Image

from vitzoo.extras import require

from .digit_scenes import make_scene, resolve_preset

ABOUT = ('parts of three photographs (china.jpg and flower.jpg inside scikit-learn, grace_hopper.jpg inside matplotlib) and digit scenes '
         '(from the handwritten digits inside scikit-learn)')


def sample_images(scenes: int = 9) -> dict[str, Image.Image]:
    """Name -> RGB image: each photograph whole and its four quarters, and scenes of the validation part.

    Raises ImportError without the extra `viz`.
    """
    load = require('sklearn.datasets', 'viz').load_sample_image
    hopper = require('matplotlib.cbook', 'viz').get_sample_data('grace_hopper.jpg', asfileobj=False)
    photos = {name: Image.fromarray(load(name)) for name in ('china.jpg', 'flower.jpg')}
    with Image.open(hopper) as image:
        photos['grace_hopper.jpg'] = image.convert('RGB')
    images = {}
    for name, photo in photos.items():
        w, h = photo.width // 2, photo.height // 2
        images[name] = photo
        for place, left, top in ('top left', 0, 0), ('top right', w, 0), ('bottom left', 0, h), ('bottom right', w, h):
            images[f'{name}, {place}'] = photo.crop((left, top, left + w, top + h))
    preset = resolve_preset('standard')
    for index in range(scenes):
        images[f'digit scene {index}'] = Image.fromarray(make_scene(preset, 0, 'val', index).image)
    return images
