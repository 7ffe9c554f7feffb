"""Draw docs/davit.png: what a position attends to in its window, and what the channels of a group take from each other.

    python docs/figures/davit.py

Trains `vz_davit_micro` for about a minute on one CPU core to say at every level which digits each position of a digit scene shows. Draws
validation scenes with the attentions of the second stage's last pair of blocks.
"""
import argparse
from pathlib import Path

import matplotlib
import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import vitzoo  # noqa: F401  (registers the models)
from vitzoo.datasets.digit_scenes import make_scene, resolve_preset

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

CLASSES, STAGE, STRIDE = 11, 1, 8
SCENES = (0, 3, 5)


def scenes(split: str, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, 128, 160), and whether each pixel is of each class (B, 11, 128, 160)."""
    found = [make_scene(resolve_preset('standard'), 0, split, i) for i in range(num)]
    images = torch.from_numpy(np.stack([scene.image for scene in found])).permute(0, 3, 1, 2) / 127.5 - 1
    classes = F.one_hot(torch.from_numpy(np.stack([scene.semantic for scene in found])).long(), CLASSES)
    return images, classes.permute(0, 3, 1, 2).float()


def train(steps: int) -> nn.Module:
    torch.manual_seed(0)
    images, classes = scenes('train', 1200)
    model = timm.create_model('vz_davit_micro', num_classes=0)
    heads = nn.ModuleList(nn.Conv2d(info['num_chs'], CLASSES, 1) for info in model.feature_info)
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], weight_decay=0.05)
    for step in range(steps):
        optimizer.param_groups[0]['lr'] = 3e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        batch = torch.randint(len(images), (24,))
        maps = model.forward_intermediates(images[batch], intermediates_only=True)
        loss = sum(F.cross_entropy(head(F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2)),
                                   F.adaptive_avg_pool2d(classes[batch], x.shape[2:])) for head, x in zip(heads, maps, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 19:
            print(f'step {step + 1}: loss {loss.item() / len(heads):.3f}', flush=True)
    return model.eval()


@torch.no_grad()
def attend(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of the chosen pair: weights (B, M, 49, 49) in the windows, the mean over heads; weights (B, g, d, d) of the channels, and the maps
    (B, g, d, 16, 20) that they are the weights of.
    """
    spatial, channel = model.stages[STAGE].blocks[-1]
    seen = {}
    hooks = [block.attn.register_forward_hook(lambda attn, args, out: seen.update({attn: args[0]})) for block in (spatial, channel)]
    model(images)
    for hook in hooks:
        hook.remove()
    q, k, _ = spatial.attn.qkv(seen[spatial.attn]).unflatten(3, (3, spatial.attn.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)
    windows = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1).mean(2)
    q, k, v = channel.attn.qkv(seen[channel.attn]).unflatten(3, (3, channel.attn.num_heads, -1)).permute(3, 0, 4, 5, 1, 2)
    channels = (k.flatten(3) @ v.flatten(3).mT * q.shape[2] ** -0.5).softmax(-1)
    return windows, channels, q


def draw(model: nn.Module, path: Path) -> None:
    images, classes = (x[list(SCENES)] for x in scenes('val', max(SCENES) + 1))
    h, w = model.stages[STAGE].blocks[-1][0].window
    digits = 1 - F.avg_pool2d(classes[:, 0], STRIDE)
    H, W = digits.shape[1:]
    windows, channels, values = attend(model, images)
    figure, rows = plt.subplots(len(SCENES), 6, figsize=(15, 2.3 * len(SCENES)), layout='constrained',
                                width_ratios=(1.25, 1.25, 1, 1, 1.25, 1.25))
    for b, row in enumerate(rows):
        picture = (images[b].permute(1, 2, 0).numpy() + 1) / 2
        i, j = divmod(digits[b].flatten().argmax().item(), W)  # the position with most of a digit
        top, left = i // h * h, j // w * w
        weights = windows[b, i // h * -(-W // w) + j // w, i % h * w + j % w].unflatten(0, (h, w))
        seen = np.full((H, W), np.nan)
        seen[top:top + h, left:left + w] = weights[:H - top, :W - left]
        for axes in row[:2]:
            axes.imshow(picture, extent=(0, W, H, 0))
            axes.add_patch(plt.Rectangle((j, i), 1, 1, fill=False, edgecolor='red', linewidth=1.8, zorder=3))
            axes.add_patch(plt.Rectangle((left, top), min(w, W - left), min(h, H - top), fill=False, edgecolor='white', linewidth=1.5))
        row[1].imshow(np.zeros((H, W)), cmap='gray', alpha=0.65, extent=(0, W, H, 0))
        row[1].imshow(seen, cmap='magma', extent=(0, W, H, 0))
        for group, (weights, maps) in enumerate(zip(channels[b], values[b], strict=True)):
            row[2 + group].imshow(weights, cmap='magma', vmin=0, vmax=1)
            row[2 + group].set_title(f'channels of group {group + 1}', fontsize=10)
            taken = weights.sum(0).argmax().item()  # the column with most weight
            row[4 + group].imshow(maps[taken], cmap='viridis', extent=(0, W, H, 0))
            share = 100 * weights.sum(0)[taken] / len(weights)
            row[4 + group].set_title(f'group {group + 1} takes {share:.0f} % from channel {taken + 1}', fontsize=10)
        for axes in row:
            axes.set(xticks=[], yticks=[])
    for axes, title in zip(rows[0], ('a window, a position (red)', 'what it attends to'), strict=False):
        axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=80)
    Image.open(path).quantize(256).save(path, optimize=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--out', type=Path, default=Path(__file__).parents[1] / 'davit.png')
    parser.add_argument('--steps', type=int, default=120)
    args = parser.parse_args()
    torch.set_num_threads(1)
    draw(train(args.steps), args.out)
