"""Which position a merged token should have: agreement with the unreduced model, for a small DINOv3-like model trained from scratch.

    python -m benchmarks.reduction.rope [--seeds 0 1 2] [--csv benchmarks/reduction/rope.csv]

The data are scikit-learn's handwritten digits, each 8x8, enlarged to 24x24. Rotary positions are all that the model knows
of places. One row of the CSV a seed and setting; the table is the mean over seeds.
"""
import argparse
import csv
import itertools
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import vitzoo

SIZE, PATCH, DEPTH = 24, 4, 6
SETTINGS = [
    *(('tome', dict(r=r, position=position, match=match))
      for r, position, match in itertools.product((2, 3, 5), ('mean', 'keep'), ('content', 'rotated'))),
    *(('evit', dict(keep_rate=keep_rate, locations=(1, 2, 3), position=position))
      for keep_rate, position in itertools.product((0.8, 0.6), ('mean', 'keep', 'none'))),
]
MEASURES = ('top1', 'agreement', 'cosine_middle', 'cosine_last', 'cosine_class')


def digits(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images (n, 1, 24, 24) and classes to learn from, and to test with."""
    images, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    images = F.interpolate(images[order].float().view(-1, 1, 8, 8) / 8 - 1, size=SIZE, mode='bilinear')
    return images[:1297], labels[order][:1297], images[1297:], labels[order][1297:]


def train(seed: int, steps: int) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """A model, and images and classes that it has not seen."""
    torch.manual_seed(seed)
    x, y, x_test, y_test = digits(seed)
    model = timm.create_model('vit_small_patch16_dinov3', img_size=SIZE, patch_size=PATCH, depth=DEPTH, embed_dim=96, num_heads=3,
                              in_chans=1, num_classes=10, global_pool='token', init_values=1., head_init_scale=1.)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.15)
    for step in range(steps):
        i = torch.randint(len(x), (64,))
        loss = F.cross_entropy(model(x[i]), y[i])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
        schedule.step()
        if step % 20 == 19:
            print(f'seed {seed}, step {step + 1}: loss {loss.item():.3f}', flush=True)
    return model.eval(), x_test, y_test


@torch.no_grad()
def answers(model: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Logits, maps of the middle and the last block (B, C, h, w), class token (B, C)."""
    final, (middle, last) = model.forward_intermediates(x, [DEPTH // 2, DEPTH - 1])
    return model.forward_head(final), middle, last, final[:, 0]


def measure(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[dict]:
    plain = answers(model, x)
    rows = [dict(method='plain', top1=(plain[0].argmax(1) == y).double().mean().item())]
    for method, options in SETTINGS:
        vitzoo.reduce_tokens(model, method, **options)
        found = answers(model, x)
        top1, agreement = ((found[0].argmax(1) == other).double().mean().item() for other in (y, plain[0].argmax(1)))
        cosines = [F.cosine_similarity(a, b, dim=1).mean().item() for a, b in zip(found[1:], plain[1:], strict=True)]
        rows.append(dict(method=method, strength=options.get('r', options.get('keep_rate')), position=options['position'],
                         match=options.get('match', ''), **dict(zip(MEASURES, (top1, agreement, *cosines), strict=True))))
        vitzoo.restore_tokens(model)
    return rows


def table(rows: list[dict]) -> str:
    """Markdown: means over the seeds, and the spread of the agreement."""
    text = ['| method | strength | position | match | top-1 | agreement | cosine, block 3 | cosine, last | cosine, class token |',
            '| --- | --- | --- | --- | --- | --- | --- | --- | --- |']

    def setting(row):
        return tuple(str(row.get(name) or '') for name in ('method', 'strength', 'position', 'match'))
    for key in dict.fromkeys(map(setting, rows)):
        values = {name: torch.tensor([float(row[name]) for row in rows if setting(row) == key and row.get(name)]) for name in MEASURES}
        cells = [f'{v.mean():.3f} ± {v.std(correction=0):.3f}' if len(v) else '' for v in values.values()]
        text.append(f'| {" | ".join((*key, *cells))} |')
    return '\n'.join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--steps', type=int, default=200)
    parser.add_argument('--csv', type=Path, default=Path(__file__).with_suffix('.csv'))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in args.seeds:
        rows += [dict(seed=seed, **row) for row in measure(*train(seed, args.steps))]
        with open(args.csv, 'w', newline='') as file:
            writer = csv.DictWriter(file, ['seed', 'method', 'strength', 'position', 'match', *MEASURES])
            writer.writeheader()
            writer.writerows({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
        print(table(rows), flush=True)


if __name__ == '__main__':
    main()
