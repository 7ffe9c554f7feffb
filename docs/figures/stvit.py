"""Draw docs/stvit.png: what the semantic tokens of a small model attend to.

    python docs/figures/stvit.py

Trains the first three stages of `stvit_micro` for about a minute on one CPU core to say, with each semantic token, which digits its
cell of a digit scene shows, and draws two validation scenes with the attention of both generations in the dense form.
"""
import argparse
from pathlib import Path

import matplotlib
import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image

from vitzoo.datasets.digit_scenes import make_scene, resolve_preset
from vitzoo.models import stvit

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

SIZE, STRIDE, CLASSES = 224, 16, 11
MAP = SIZE // STRIDE
WINDOWS = MAP // stvit.WINDOW
TOKENS = WINDOWS * stvit.GRID
SCENES = (0, 2)


def scenes(split: str, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The middle of scenes at twice their size (B, 3, 224, 224), and the share of each class in each cell (B, 11, 6, 6)."""
    found = [make_scene(resolve_preset('standard'), 0, split, i) for i in range(num)]
    top, left = ((n - SIZE // 2) // 2 for n in found[0].semantic.shape)
    middle = slice(top, top + SIZE // 2), slice(left, left + SIZE // 2)
    images = torch.from_numpy(np.stack([scene.image[middle] for scene in found])).permute(0, 3, 1, 2) / 127.5 - 1
    classes = F.one_hot(torch.from_numpy(np.stack([scene.semantic[middle] for scene in found])).long(), CLASSES).permute(0, 3, 1, 2)
    return F.interpolate(images, scale_factor=2), F.adaptive_avg_pool2d(F.interpolate(classes.float(), scale_factor=2), TOKENS)


def by_window(x: torch.Tensor) -> torch.Tensor:
    """(B, C, 6, 6) -> (B, 36, C) in the order of the semantic tokens."""
    x = x.unflatten(3, (WINDOWS, stvit.GRID)).unflatten(2, (WINDOWS, stvit.GRID))  # (B, C, row, r, col, c)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(len(x), TOKENS ** 2, -1)


def train(steps: int) -> torch.nn.Module:
    torch.manual_seed(0)
    images, shares = scenes('train', 400)
    model = timm.create_model('stvit_micro', features_only=True, out_indices=(2,))
    stage = model.model.stages[2]
    for block in stage.blocks[1:]:
        torch.nn.init.constant_(block.ls1.gamma, 0.3)
        torch.nn.init.constant_(block.ls2.gamma, 0.3)
    head = torch.nn.Sequential(torch.nn.LayerNorm(96), torch.nn.Linear(96, CLASSES))
    seen = []
    hook = stage.blocks[4].register_forward_hook(lambda module, args, out: seen.append(out))
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.05)
    for step in range(steps):
        optimizer.param_groups[0]['lr'] = 3e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        batch = torch.randint(len(images), (12,))
        model(images[batch])
        loss = F.cross_entropy(head(seen.pop()).transpose(1, 2), by_window(shares[batch]).transpose(1, 2))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1)
        optimizer.step()
        if step % 20 == 19:
            print(f'step {step + 1}: loss {loss.item():.3f}', flush=True)
    hook.remove()
    return model.eval()


@torch.no_grad()
def look(model: torch.nn.Module, images: torch.Tensor) -> list[np.ndarray]:
    """Attention of both generations on the image tokens (B, 36, 14, 14), the mean over the heads; what is left looks at padding."""
    calls, attend = [], stvit.attend

    def record(q, kv, num_heads, groups=1, mask=None):
        calls.append((q, kv, num_heads, mask))
        return attend(q, kv, num_heads, groups, mask)
    stvit.attend = record
    model(images)
    stvit.attend = attend
    maps = []
    for q, kv, num_heads, mask in calls[:2]:
        q, k = (x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (q, kv[..., :q.shape[2]]))
        attention = (q @ k.transpose(2, 3) * q.shape[3] ** -0.5 + mask).softmax(-1).mean(1)
        maps.append(attention[..., stvit.token_places(MAP, MAP, 0)].unflatten(2, (MAP, MAP)).numpy())
    return maps


def draw(model: torch.nn.Module, path: Path) -> None:
    images = scenes('val', max(SCENES) + 1)[0][list(SCENES)]
    generations = look(model, images)
    images = (images.permute(0, 2, 3, 1).numpy() + 1) / 2
    window, cell = SIZE / WINDOWS, SIZE / TOKENS

    figure = plt.figure(figsize=(12.4, 4.1 * len(SCENES)), layout='constrained')
    panels = figure.subfigures(len(SCENES), 3)
    for b, row in enumerate(panels):
        axes = row[0].subplots()
        axes.imshow(images[b])
        for i in range(1, MAP):
            for line in (axes.axhline, axes.axvline):
                line(i * STRIDE - 0.5, color='white', linewidth=1.6 if i % stvit.WINDOW == 0 else 0.25)
        y, x = (cell * (np.indices((TOKENS, TOKENS)) + 0.5) - 0.5).reshape(2, -1)
        axes.scatter(x, y, s=26, color='white', edgecolor='black', linewidth=0.8)
        axes.set(xticks=[], yticks=[], xlim=(-0.5, SIZE - 0.5), ylim=(SIZE - 0.5, -0.5))
        for panel, side, maps in zip(row[1:], (stvit.GENERATE_1.side, stvit.GENERATE_2.side), generations, strict=True):
            for place, axes in enumerate(panel.subplots(TOKENS, TOKENS).flat):
                r, c = divmod(place, TOKENS)
                token = (r // 3 * WINDOWS + c // 3) * 9 + r % 3 * 3 + c % 3
                axes.imshow(images[b].mean(-1), cmap='gray', vmin=-0.6, vmax=1)
                values = np.kron(maps[b, token], np.ones((STRIDE, STRIDE)))
                axes.imshow(values, cmap='inferno', vmin=0, vmax=values.max(), alpha=0.65)
                axes.set(xticks=[], yticks=[], xlim=(-0.5, SIZE - 0.5), ylim=(SIZE - 0.5, -0.5))
                left = (side - stvit.WINDOW) // 2 * STRIDE
                for x, y, width, colour in ((c // 3 * window - left, r // 3 * window - left, side * STRIDE, 'deepskyblue'),
                                            (c * cell, r * cell, cell, 'white')):
                    axes.add_patch(plt.Rectangle((x - 0.5, y - 0.5), width, width, fill=False, edgecolor=colour, linewidth=0.9))
    titles = ('4 windows of 49 image and 9 semantic tokens', '1st generation: attention of the 36', '2nd generation: attention of the 36')
    for panel, title in zip(panels[0], titles, strict=True):
        panel.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=90)
    Image.open(path).quantize(256).save(path, optimize=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--out', type=Path, default=Path(__file__).parents[1] / 'stvit.png')
    parser.add_argument('--steps', type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    draw(train(args.steps), args.out)
