"""What our models cost, counted once; `counts.csv` has the numbers, so that nobody has to build a model to know them."""
import csv
import functools
from pathlib import Path
from typing import NamedTuple


class Counted(NamedTuple):
    """All but the parameters at the image size of the model's configuration, by `vitzoo.profile`."""
    params: int
    macs: int
    megabytes: float  # moved an image, of a batch of 128 at 2 bytes an element
    operators: int


@functools.cache
def counted() -> dict[str, Counted]:
    """Registered name -> its numbers, of all models of ours."""
    with (Path(__file__).parent / 'counts.csv').open(newline='', encoding='utf-8') as file:
        return {row['model']: Counted(int(row['params']), int(row['macs']), float(row['megabytes']), int(row['operators']))
                for row in csv.DictReader(file)}
