"""Draw the pictures of the families' pages: token maps of small models on digit scenes.

    python docs/figures/token_maps.py [FAMILY ...]

Trains the micro model of each family for a minute or two on one CPU core to name, with each of its maps, the digits at every position, and
draws two validation scenes as `vitzoo show` does.
"""
import argparse
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import vitzoo
from vitzoo.datasets.digit_scenes import make_scene, resolve_preset
from vitzoo.viz import draw_token_maps

CLASSES = 11  # the digits, and none
SCENES = (0, 3)


class Figure(NamedTuple):
    """A model, the part of the scenes that it sees, how often that is enlarged, and the layers that are drawn."""
    model: str
    options: dict
    size: tuple[int, int] = (128, 160)
    factor: int = 1
    layers: tuple[str, ...] = ('*',)
    steps: int = 160
    batch: int = 24


FIGURES = {
    'svit': Figure('svit_micro', {}),
    'biformer': Figure('biformer_micro', dict(n_win=8), (128, 128), layers=('stages.[01]*', 'stages.2.blocks.1*')),
    'stvit': Figure('stvit_micro', dict(form='dense'), (112, 112), 2, layers=('stages.2.blocks.[125]',), steps=80, batch=12),
    'stvit_deit': Figure('stvit_deit_micro', {}, layers=('blocks.*',)),
    'davit': Figure('vz_davit_micro', {}, layers=('stages.[012]*',), steps=0),  # windows are where they are, trained or not
    'rmt': Figure('rmt_micro', {}, layers=('stages.[12].blocks.0*',), steps=0),  # so are lines
    'dualtoken_vit': Figure('dualtoken_vit_micro', {}),
    'lookupvit': Figure('lookupvit_micro', {}, layers=('blocks.*',)),
}


def scenes(split: str, num: int, figure: Figure) -> tuple[torch.Tensor, torch.Tensor]:
    """The middle of scenes, images (B, 3, H, W) from -1 to 1, and whether each pixel is of each class (B, 11, H, W)."""
    found = [make_scene(resolve_preset('standard'), 0, split, i) for i in range(num)]
    top, left = ((n - cut) // 2 for n, cut in zip(found[0].semantic.shape, figure.size, strict=True))
    middle = slice(top, top + figure.size[0]), slice(left, left + figure.size[1])
    images = torch.from_numpy(np.stack([scene.image[middle] for scene in found])).permute(0, 3, 1, 2) / 127.5 - 1
    classes = F.one_hot(torch.from_numpy(np.stack([scene.semantic[middle] for scene in found])).long(), CLASSES).permute(0, 3, 1, 2)
    return tuple(F.interpolate(x.float(), scale_factor=figure.factor) for x in (images, classes))


def train(figure: Figure) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(figure.model, num_classes=0, **figure.options)
    if not figure.steps:
        return model.eval()
    images, classes = scenes('train', 600, figure)
    with torch.no_grad():  # STViT's scales of 1e-5 would take longer than a minute to grow
        for module in model.modules():
            if isinstance(getattr(module, 'gamma', None), nn.Parameter):
                module.gamma.fill_(0.3)
    heads = nn.ModuleList(nn.LazyConv2d(CLASSES, 1) for _ in maps_of(model, images[:1]))
    for head, x in zip(heads, maps_of(model, images[:1]), strict=True):
        head(x)
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.05)
    for step in range(figure.steps):
        optimizer.param_groups[0]['lr'] = 3e-3 * min(1, (step + 1) / 20) * (1 - step / figure.steps)
        batch = torch.randint(len(images), (figure.batch,))
        loss = sum(F.cross_entropy(head(x), F.adaptive_avg_pool2d(classes[batch], x.shape[2:]))
                   for head, x in zip(heads, maps_of(model, images[batch]), strict=True))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1)
        optimizer.step()
        if step % 20 == 19:
            print(f'{figure.model}, step {step + 1}: loss {loss.item() / len(heads):.3f}', flush=True)
    return model.eval()


def maps_of(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """What is to name the digits, normalised (B, C, h, w): the maps, and LookupViT's compressed tokens."""
    found = model.forward_intermediates(images, intermediates_only=True)
    if hasattr(model, 'compressed_size'):
        found = [model.forward_intermediates(images, return_prefix_tokens=True, intermediates_only=True)[-1]]
        found = [found[0][0], found[0][1].transpose(1, 2).unflatten(2, model.compressed_size)]
    return [F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2) for x in found]


def draw(figure: Figure, path: Path) -> None:
    model, images = train(figure), scenes('val', max(SCENES) + 1, figure)[0]
    rows = []
    for i in SCENES:
        maps = [m for m in vitzoo.token_map(model, images[i]) if any(fnmatchcase(m.layer, pattern) for pattern in figure.layers)]
        picture = ((images[i].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
        rows.append(draw_token_maps(picture, maps, columns=len(maps) + 1))
    sheet = Image.new('RGB', (rows[0].width, sum(row.height for row in rows)))
    for i, row in enumerate(rows):
        sheet.paste(row, (0, i * row.height))
    sheet.quantize(256).save(path, optimize=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('families', nargs='*', metavar='FAMILY', help=f'{", ".join(FIGURES)} (default: all)')
    parser.add_argument('--out', type=Path, default=Path(__file__).parents[1], metavar='DIR')
    args = parser.parse_args()
    torch.set_num_threads(1)
    for family in args.families or FIGURES:
        draw(FIGURES[family], args.out / f'{family}.png')
