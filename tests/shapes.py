"""The shapes that docs/own_data.md draws, as people have data: pictures of two sizes, a COCO file, label maps."""
import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / 'docs' / 'own_data.md'
CLASSES = ['circle', 'box']


def draw(root: Path, num: int = 10, seed: int = 0) -> Path:
    """`root`/images, `root`/maps and `root`/objects.json, by the code of the page."""
    names = {}
    exec(re.search(r'^```python\n(.*?)^```', PAGE.read_text(encoding='utf-8'), re.DOTALL | re.MULTILINE)[1], names)
    names['draw_shapes'](root, num, seed)
    return root
