"""Draw docs/stvit_deit.png: what the 16 semantic tokens of a small model gather.

    python docs/figures/stvit_deit.py

Trains `stvit_deit_micro` for about a minute on one CPU core to say, with each semantic token, which digits its window of a digit scene
shows, and draws two validation scenes: the windows with the weights that pooling gives their patches, and the attention of
the second generation layer.
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
from vitzoo.models.stvit_deit import Generation, window_edges, window_of_position, window_tables

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

PATCH, MAP, GRID = 16, (8, 10), (4, 4)
SCENES = (0, 3)


def scenes(split: str, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, 128, 160), and the share of each class in each window (B, 16, 11)."""
    found = [make_scene(resolve_preset('standard'), 0, split, i) for i in range(num)]
    images = torch.from_numpy(np.stack([scene.image for scene in found])).permute(0, 3, 1, 2) / 127.5 - 1
    classes = F.one_hot(torch.from_numpy(np.stack([scene.semantic for scene in found])).long(), 11).permute(0, 3, 1, 2).float()
    member = F.one_hot(window_of_position(*MAP, *GRID)).float()  # (80, 16)
    return images, (F.avg_pool2d(classes, PATCH).flatten(2) @ (member / member.sum(0))).transpose(1, 2)


def train(steps: int) -> torch.nn.Module:
    torch.manual_seed(0)
    images, shares = scenes('train', 1200)
    model = timm.create_model('stvit_deit_micro', img_size=(128, 160), num_classes=11, global_pool='')
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    for step in range(steps):
        optimizer.param_groups[0]['lr'] = 4e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        batch = torch.randint(len(images), (32,))
        loss = F.cross_entropy(model(images[batch]).transpose(1, 2), shares[batch].transpose(1, 2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def look(model: torch.nn.Module, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Pooling weights (B, 8, 10), relative to equal ones, and attention of the second generation layer (B, 16, 8, 10), mean of heads."""
    first, second = (block for block in model.blocks if isinstance(block, Generation))
    seen = {}
    hooks = [first.pool.score.register_forward_hook(lambda module, args, out: seen.update(scores=out)),
             second.attn.register_forward_pre_hook(lambda module, args: seen.update(tokens=args))]
    model(images)
    for hook in hooks:
        hook.remove()

    index, mask = window_tables(*MAP, *GRID)
    index, mask = index.numpy(), mask.flatten(1)
    weights = (seen['scores'].reshape(-1, *mask.shape) + mask).softmax(-1)
    weights = (weights * (mask == 0).sum(1, keepdim=True)).flatten(1).numpy()
    inside = index < MAP[0] * MAP[1]
    pooling = np.zeros((len(images), MAP[0] * MAP[1]))
    pooling[:, index[inside]] = weights[:, inside]

    queries, context = seen['tokens']
    dim, heads = queries.shape[-1], second.attn.num_heads
    weight, bias = second.attn.qkv.weight, second.attn.qkv.bias
    q = F.linear(queries, weight[:dim], bias[:dim]).unflatten(-1, (heads, -1)).transpose(1, 2)
    k = F.linear(context, weight[dim:2 * dim], bias[dim:2 * dim]).unflatten(-1, (heads, -1)).transpose(1, 2)
    attention = (q @ k.transpose(2, 3) * second.attn.scale).softmax(-1).mean(1)[..., -MAP[0] * MAP[1]:]  # on the patches
    return pooling.reshape(-1, *MAP), attention.reshape(-1, GRID[0] * GRID[1], *MAP).numpy()


def overlay(axes, image: np.ndarray, values: np.ndarray, limit: float) -> None:
    """The image in grey, tinted where the values of its patches are large."""
    axes.imshow(image.mean(-1), cmap='gray', vmin=-0.6, vmax=1)
    axes.imshow(np.kron(values, np.ones((PATCH, PATCH))), cmap='inferno', vmin=0, vmax=limit, alpha=0.65)
    axes.set(xticks=[], yticks=[])


def draw(model: torch.nn.Module, path: Path) -> None:
    images = scenes('val', max(SCENES) + 1)[0][list(SCENES)]
    pooling, attention = look(model, images)
    images = (images.permute(0, 2, 3, 1).numpy() + 1) / 2
    rows, cols = (PATCH * np.array(window_edges(n, count)) for n, count in zip(MAP, GRID, strict=True))

    figure = plt.figure(figsize=(12.4, 3.3 * len(SCENES)), layout='constrained')
    panels = figure.subfigures(len(SCENES), 3, width_ratios=(1, 1, 1.35))
    titles = ('image, 80 patches, 16 windows', 'pooling: weights inside each window', '2nd generation layer: attention of the 16 tokens')
    for row, image, weights, maps in zip(panels, images, pooling, attention, strict=True):
        for panel in row[:2]:
            axes = panel.subplots()
            if panel is row[0]:
                axes.imshow(image)
                axes.set(xticks=[], yticks=[])
            else:
                overlay(axes, image, weights, weights.max())
            for edges, line in ((rows, axes.axhline), (cols, axes.axvline)):
                for edge in edges[1:-1]:
                    line(edge - 0.5, color='white', linewidth=1.2)
        for token, axes in enumerate(row[2].subplots(*GRID).flat):
            overlay(axes, image, maps[token], maps[token].max())
            i, j = divmod(token, GRID[1])
            axes.add_patch(plt.Rectangle((cols[j] - 0.5, rows[i] - 0.5), cols[j + 1] - cols[j], rows[i + 1] - rows[i], fill=False,
                                         edgecolor='white', linewidth=0.9))
    for panel, title in zip(panels[0], titles, strict=True):
        panel.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=90)
    Image.open(path).quantize(256).save(path, optimize=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--out', type=Path, default=Path(__file__).parents[1] / 'stvit_deit.png')
    parser.add_argument('--steps', type=int, default=240)
    args = parser.parse_args()
    torch.set_num_threads(1)
    draw(train(args.steps), args.out)
