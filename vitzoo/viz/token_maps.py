"""Token maps over the image they are of."""
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vitzoo_runtime.pictures import contact_sheet, enlarged, heat_colours, palette

KINDS = ('groups', 'tokens', 'counts')
FADED = 235  # what dropped positions fade to
EDGE = 255
COLOURS = 24


def draw_token_maps(image: Image.Image | np.ndarray, maps: Sequence, *, columns: int = 4, size: int = 320) -> Image.Image:
    """Draw the image, and beside it a panel for each token map.

    Positions that belong together have a colour and an edge around them. Where tokens are reduced, a patch for itself shows the image as it
    is, and one that was dropped fades. Counts go from dark for few to bright for many, on a scale for each panel.

    Args:
        image: what the model saw, a picture, or an array (H, W, 3) or (H, W) of uint8.
        maps: what `vitzoo.token_map` answers, or whatever has these fields; labels are anything that numpy takes for an array (h, w).
        columns: panels in a row.
        size: the image is enlarged by a whole factor until its longer side is at least this long.

    Raises:
        ValueError: if there is no map, or one of another kind.
    """
    if not maps:
        raise ValueError('no token maps to draw; expected at least one')
    for m in maps:
        if m.kind not in KINDS:
            raise ValueError(f'kind={m.kind!r}: expected {", ".join(map(repr, KINDS))}.')
    image, factor = enlarged(image, size)
    panels = [draw_token_map(image, m, factor) for m in maps]
    return contact_sheet([image, *panels], min(columns, len(panels) + 1), titles=['image', *map(describe, maps)])


def describe(m) -> str:
    """A map in a line, such as 'blocks.3: 138 tokens'."""
    if m.kind == 'counts':
        labels = np.asarray(m.labels)
        return f'{m.layer}: {labels.min()} to {labels.max()} of {m.total} {m.what}'
    return f'{m.layer}: {m.total} {m.what if m.total != 1 else m.what.removesuffix("s")}'


def draw_token_map(image: Image.Image, m, factor: int = 1) -> Image.Image:
    """One map over the image, which is `factor` times as large as what the model saw."""
    labels = np.asarray(m.labels)
    height, width = (factor * s for s in m.stride)
    of_row, of_col = np.arange(image.height) // height, np.arange(image.width) // width
    # a model may cut what is left of the last patch: as if it were dropped
    place = np.pad(np.arange(labels.size).reshape(labels.shape), (0, 1), constant_values=-1)
    place = place[np.minimum(of_row, labels.shape[0])[:, None], np.minimum(of_col, labels.shape[1])]
    pixels = np.asarray(image.convert('RGB'), np.float32)

    def spread(values, outside):
        """Values of the positions (h, w, ...) -> of the pixels."""
        return np.concatenate([values.reshape(labels.size, *values.shape[2:]), [outside]])[place]

    if m.kind == 'counts':
        # where nearly every position has a count of its own, edges would hide the colours
        differ = labels[1:] != labels[:-1]
        shown = labels if differ.sum() <= 0.75 * differ.size else np.zeros_like(labels)
        colours, opacity = heat_colours(labels / max(labels.max(), 1)), np.full(labels.shape, 0.6)
    else:
        _, groups, counts = np.unique(labels, return_inverse=True, return_counts=True)
        groups = groups.reshape(labels.shape)
        alone, dropped = (counts[groups] == 1) & (m.kind == 'tokens') & (labels >= 0), labels < 0
        shown = np.where(alone, labels.max() + 1, labels)  # no edges among those that are alone
        colours = np.where(dropped[..., None], FADED, group_colours(groups, counts)[groups])
        opacity = np.select([alone, dropped], [0., 0.85], 0.5)
    opacity = spread(opacity, 0.85)[..., None]
    drawn = (1 - opacity) * pixels + opacity * spread(colours, (FADED,) * 3)
    drawn[_edges(spread(shown, -1), max(1, max(image.size) // 320))] = EDGE
    return Image.fromarray(drawn.clip(0, 255).astype(np.uint8))


def group_colours(groups: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """A colour for each group, (G, 3); groups (h, w) from 0, counts (G,) their positions.

    The largest come first. Each takes one that no neighbour has, while there are such, of those one that few others have, and of those the
    most unlike its neighbours'.
    """
    colours = np.array(palette(COLOURS), np.float32)
    neighbours = [set() for _ in counts]
    for a, b in (groups[1:], groups[:-1]), (groups[:, 1:], groups[:, :-1]):
        for i, j in {*zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)}:
            neighbours[i].add(j)
            neighbours[j].add(i)
    chosen, used = np.full(len(counts), -1), np.zeros(COLOURS, int)
    for group in np.argsort(-counts, kind='stable'):
        near = [chosen[n] for n in neighbours[group] - {group} if chosen[n] >= 0]
        distance = np.abs(colours[:, None] - colours[near]).sum(-1).min(1, initial=1e9)
        best = np.lexsort((-distance, used, distance == 0))[0]
        chosen[group] = best
        used[best] += 1
    return colours[chosen]


def _edges(regions: np.ndarray, line: int) -> np.ndarray:
    """Where a region's last pixels are, to the right and below, `line` of them."""
    edge = np.zeros(regions.shape, bool)
    for i in range(1, line + 1):
        edge[:-i] |= regions[:-i] != regions[i:]
        edge[:, :-i] |= regions[:, :-i] != regions[:, i:]
    return edge
