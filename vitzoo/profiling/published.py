"""Published ImageNet-1k accuracy of models, ours and timm's, each with its source; `published.csv` has them."""
import csv
import functools
from pathlib import Path
from typing import NamedTuple


class Published(NamedTuple):
    """Top-1 in percent, of weights trained on ImageNet-1k alone (distilled ones too, whose `tag` says so), at the smallest size of 224 or
    more that was evaluated."""
    top1: float
    size: int
    tag: str
    source: str


@functools.cache
def _table() -> dict[str, Published]:
    with (Path(__file__).parent / 'published.csv').open(newline='', encoding='utf-8') as file:
        return {row['model']: Published(float(row['top1']), int(row['size']), row['tag'], row['source']) for row in csv.DictReader(file)}


def published(name: str) -> Published | None:
    """What was published of a model, by its registered name, with or without a tag; None where we know of nothing."""
    return _table().get(name.partition('.')[0])
