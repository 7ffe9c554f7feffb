"""Draw docs/lookupvit.png: which positions the compressed tokens of a small model look up.

    python docs/figures/lookupvit.py

Trains `lookupvit_micro` with patches of 8 for about a minute on one CPU core, at compressed sizes drawn from 3 and 5, to paint with
each compressed token its cell of a digit scene at 8x8 pixels. Positions start as sines and keys like queries, so that tokens find what
lies near them from the beginning. Draws a validation scene with the attention of two blocks at 5x5 and 3x3 compressed tokens.
"""
import argparse
from pathlib import Path

import matplotlib
import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image

import vitzoo  # noqa: F401  (registers the models)
from vitzoo.datasets.digit_scenes import make_scene, resolve_preset

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

PATCH, MAP, CELL = 8, (16, 20), 8
PANELS = ((0, 5), (2, 5), (0, 3))  # block, compressed size
SCENE = 0


def scenes(split: str, num: int) -> torch.Tensor:
    """Images (B, 3, 128, 160) from -1 to 1."""
    preset = resolve_preset('standard')
    return torch.from_numpy(np.stack([make_scene(preset, 0, split, i).image for i in range(num)])).permute(0, 3, 1, 2) / 127.5 - 1


def sines(rows: int, cols: int, dim: int) -> torch.Tensor:
    """Positions (1, rows * cols, dim) of a grid over the image, the same for every number of rows and columns."""
    waves = torch.arange(1, dim // 4 + 1)

    def axis(length):
        angle = (torch.arange(length)[:, None] + 0.5) / length * waves * torch.pi / 2
        return torch.cat([angle.sin(), angle.cos()], 1) / waves.repeat(2).sqrt()

    return torch.cat([axis(rows)[:, None].expand(-1, cols, -1), axis(cols).expand(rows, -1, -1)], -1).reshape(1, rows * cols, dim)


def train(steps: int) -> torch.nn.Module:
    torch.manual_seed(0)
    images = scenes('train', 1200)
    model = timm.create_model('lookupvit_micro', patch_size=PATCH, stem='patch', img_size=(128, 160), train_sizes=(3, 5),
                              num_classes=3 * CELL * CELL, head='compressed')
    with torch.no_grad():
        model.pos_embed.copy_(sines(*MAP, model.embed_dim))
        model.pos_compressed.copy_(sines(*model.table_size, model.embed_dim))
        for block in model.blocks:
            block.gather.k.weight.copy_(block.gather.q.weight)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    for step in range(steps):
        optimizer.param_groups[0]['lr'] = 1.5e-3 * min(1, (step + 1) / 40) * (1 - step / steps)
        batch = images[torch.randint(len(images), (16,))]
        m, _ = model.draw_compressed_size()
        cells = F.interpolate(batch, (m * CELL, m * CELL), mode='bilinear', antialias=True)
        cells = cells.reshape(-1, 3, m, CELL, m, CELL).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        loss = F.mse_loss(model.head(model.fc_norm(model.forward_features(batch))), cells)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def look(model: torch.nn.Module, image: torch.Tensor, block: int, size: int) -> np.ndarray:
    """Attention of a block (size * size, 16, 20), the mean over its heads."""
    maps = []
    hook = model.blocks[block].gather.register_forward_hook(lambda module, args, out: maps.append(out[1]))
    model.set_compressed_size(size)
    model(image)
    hook.remove()
    return maps[0][0].mean(0).unflatten(1, MAP).numpy()


def draw(model: torch.nn.Module, path: Path) -> None:
    image = scenes('val', SCENE + 1)[SCENE:]
    attention = [look(model, image, *panel) for panel in PANELS]
    image = (image[0].permute(1, 2, 0).numpy() + 1) / 2
    height, width = image.shape[:2]

    figure = plt.figure(figsize=(11, 9.2), layout='constrained')
    first, *others = figure.subfigures(2, 2).flat
    first.suptitle('320 lookup tokens, cells of 5x5 compressed tokens')
    axes = first.subplots()
    axes.imshow(image)
    axes.set(xticks=[], yticks=[])
    for i in range(1, 5):
        axes.axhline(i * height / 5 - 0.5, color='white', linewidth=1)
        axes.axvline(i * width / 5 - 0.5, color='white', linewidth=1)
    for panel, (block, size), maps in zip(others, PANELS, attention, strict=True):
        panel.suptitle(f'what each of {size}x{size} compressed tokens looks up in block {block + 1}')
        for token, axes in enumerate(panel.subplots(size, size).flat):
            axes.imshow(image.mean(-1), cmap='gray', vmin=-0.3, vmax=1)
            values = np.kron(maps[token], np.ones((PATCH, PATCH)))
            axes.imshow(values, cmap='inferno', vmin=0, vmax=values.max(), alpha=0.6)
            axes.set(xticks=[], yticks=[])
            i, j = divmod(token, size)
            axes.add_patch(plt.Rectangle((j * width / size - 0.5, i * height / size - 0.5), width / size, height / size, fill=False,
                                         edgecolor='white', linewidth=0.9))
    figure.savefig(path, dpi=90)
    Image.open(path).quantize(256).save(path, optimize=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--out', type=Path, default=Path(__file__).parents[1] / 'lookupvit.png')
    parser.add_argument('--steps', type=int, default=240)
    args = parser.parse_args()
    torch.set_num_threads(1)
    draw(train(args.steps), args.out)
