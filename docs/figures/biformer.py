"""Draw docs/biformer.png: which regions a region of a small model attends to.

    python docs/figures/biformer.py

Trains `biformer_micro` with 8x8 regions for about a minute and a half on one CPU core to say of every 16x16 cell of a digit scene which
digits it shows. Draws validation scenes with the choices of one region in the last block of each routed stage.
"""
import argparse
from pathlib import Path

import matplotlib
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import vitzoo  # noqa: F401  (registers the models)
from vitzoo.datasets.digit_scenes import make_scene, resolve_preset

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

SIZE, N_WIN, CLASSES = 128, 8, 11
CELL = SIZE // N_WIN
SCENES = (0, 3, 5)


def scenes(split: str, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, 128, 128), and the share of each class in each cell (B, 11, 8, 8)."""
    found = [make_scene(resolve_preset('standard'), 0, split, i) for i in range(num)]
    images = torch.stack([torch.from_numpy(scene.image) for scene in found]).permute(0, 3, 1, 2) / 127.5 - 1
    classes = F.one_hot(torch.stack([torch.from_numpy(scene.semantic) for scene in found]).long(), CLASSES).permute(0, 3, 1, 2).float()
    return images[..., :SIZE, :SIZE], F.avg_pool2d(classes[..., :SIZE, :SIZE], CELL)


def train(steps: int) -> nn.Module:
    torch.manual_seed(0)
    images, shares = scenes('train', 1200)
    model = timm.create_model('biformer_micro', n_win=N_WIN, num_classes=0)
    heads = nn.ModuleList(nn.LazyConv2d(CLASSES, 1) for _ in model.stages)
    with torch.no_grad():
        for head, x in zip(heads, model.forward_intermediates(images[:2], intermediates_only=True), strict=True):
            head(x)
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], weight_decay=0.05)
    for step in range(steps):
        optimizer.param_groups[0]['lr'] = 3e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        batch = torch.randint(len(images), (32,))
        maps = model.forward_intermediates(images[batch], intermediates_only=True)
        logits = sum(F.adaptive_avg_pool2d(head(x), N_WIN) for head, x in zip(heads, maps, strict=True))
        loss = F.cross_entropy(logits, shares[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 19:
            print(f'step {step + 1}: loss {loss.item():.3f}', flush=True)
    return model.eval()


@torch.no_grad()
def choices(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """What the last block of each routed stage chose: (B, 64, k) each."""
    found = []
    hooks = [stage.blocks[-1].attn.router.register_forward_hook(lambda router, args, chosen: found.append(chosen))
             for stage in model.stages[:-1]]
    model(images)
    for hook in hooks:
        hook.remove()
    return found


def cell(region: int, **kwargs) -> plt.Rectangle:
    return plt.Rectangle((region % N_WIN * CELL - 0.5, region // N_WIN * CELL - 0.5), CELL, CELL, **kwargs)


def draw(model: nn.Module, path: Path) -> None:
    images, shares = (x[list(SCENES)] for x in scenes('val', max(SCENES) + 1))
    asking = (1 - shares[:, 0]).flatten(1).argmax(1).tolist()  # the region with most of a digit
    found = choices(model, images)
    figure, rows = plt.subplots(len(SCENES), 1 + len(found), figsize=(12.4, 3.2 * len(SCENES)), layout='constrained')
    for b, row in enumerate(rows):
        picture = (images[b].permute(1, 2, 0).numpy() + 1) / 2
        for stage, axes in enumerate(row):
            axes.imshow(picture)
            axes.set(xticks=[], yticks=[])
            if stage:
                chosen = found[stage - 1][b, asking[b]].tolist()
                for region in set(range(N_WIN ** 2)) - set(chosen):
                    axes.add_patch(cell(region, color='black', alpha=0.7, linewidth=0))
                for region in chosen:
                    axes.add_patch(cell(region, fill=False, edgecolor='gold', linewidth=1))
            axes.add_patch(cell(asking[b], fill=False, edgecolor='red', linewidth=2.2, zorder=3))
    titles = ('a region (red)', *(f'stage {i + 1} chose {found[i].shape[2]}' for i in range(len(found))))
    for axes, title in zip(rows[0], titles, strict=True):
        axes.set_title(title, fontsize=11)
    figure.savefig(path, dpi=90)
    Image.open(path).quantize(256).save(path, optimize=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--out', type=Path, default=Path(__file__).parents[1] / 'biformer.png')
    parser.add_argument('--steps', type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    draw(train(args.steps), args.out)
