"""Files of tiny models, and some images."""
import pytest
from PIL import Image
from tiny import tiny_onnx  # noqa: F401


@pytest.fixture
def images(tmp_path):
    """A folder with a red and, below, a green and a blue picture of one name, a broken one, and a text."""
    folder = tmp_path / 'images'
    (folder / 'more').mkdir(parents=True)
    Image.new('RGB', (40, 30), (250, 60, 50)).save(folder / 'red.png')
    Image.new('RGB', (30, 50), (20, 240, 30)).save(folder / 'more' / 'x.png')
    Image.new('RGB', (30, 30), (20, 40, 230)).save(folder / 'more' / 'x.JPG')
    (folder / 'broken.jpeg').write_bytes((folder / 'more' / 'x.JPG').read_bytes()[:300])
    (folder / 'notes.txt').write_text('no image')
    return folder
