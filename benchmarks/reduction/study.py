"""A ViT from scratch, and what each setting of each method makes of it."""
import copy
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import vitzoo
from vitzoo.profiling import count_macs, on_meta
from vitzoo.reduction import Setting, default_settings
from vitzoo_runtime.files import replacing

from .. import rows as rows_of
from .crops import WINDOW, crops, window

COLUMNS = ['seed', 'method', 'setting', 'accuracy', 'tuned_accuracy', 'macs', 'tokens', 'iterations', 'tuning_iterations', 'cpu_seconds',
           'vitzoo', 'torch', 'timm']
PATCH, DEPTH, BATCH, RATE = 4, 6, 32, 3e-3
ITERATIONS, TUNING = 1600, 150
PLAIN = 'plain'


class Stem(PatchEmbed):
    """Three small convolutions, which learn from a few thousand images what one of 4x4 pixels does not."""

    def __init__(self, *args, in_chans: int = 3, embed_dim: int = 48, **kwargs):
        super().__init__(*args, in_chans=in_chans, embed_dim=embed_dim, **kwargs)
        self.proj = nn.Sequential(nn.Conv2d(in_chans, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU(),
                                  nn.Conv2d(24, 48, 3, 2, 1), nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, embed_dim, 3, 1, 1))


def make_model() -> VisionTransformer:
    """100 patches of 40x40 pixels, 6 blocks of 48 channels, a class token."""
    model = VisionTransformer(img_size=WINDOW, patch_size=PATCH, embed_dim=48, depth=DEPTH, num_heads=3, mlp_ratio=2, num_classes=10,
                              embed_layer=Stem)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):  # timm's deviation of 0.02 is small for 48 channels and makes learning slow
            nn.init.xavier_uniform_(layer.weight)
    return model


def settings(methods: Sequence[str] = ()) -> list[Setting]:
    """Those of `vitzoo compare-reduction`, for this model."""
    return default_settings(DEPTH, (WINDOW // PATCH) ** 2, methods)


def class_loss(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(x), labels, label_smoothing=0.05)


def tuning_loss(method: str | None, teacher: nn.Module) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """What a model is fine-tuned with: methods that learn what to choose have losses of their own."""
    def of_predictors(model, x, labels):
        output = training.forward_with_policy(model, x)
        with torch.no_grad():
            tokens = teacher.forward_features(x)
            logits = teacher.forward_head(tokens)
        added = training.dynamicvit_loss(output, logits, tokens[:, teacher.num_prefix_tokens:])
        return F.cross_entropy(output.logits, labels, label_smoothing=0.05) + added

    def of_masks(model, x, labels):
        return class_loss(model, x, labels) + training.sparsifiner_loss(model, x)

    own = {'dynamicvit': of_predictors, 'sparsifiner': of_masks}
    if method in own:
        from vitzoo.reduction import training
    return own.get(method, class_loss)


def train(model: nn.Module, data: tuple[Tensor, Tensor], iterations: int, rate: float, seed: int,
          loss_of: Callable[[nn.Module, Tensor, Tensor], Tensor] = class_loss, new: frozenset[str] = frozenset(),
          advance: Callable[[], None] = lambda: None) -> None:
    """AdamW on random windows; the rate goes up over a tenth (at most 50) and down along a cosine. Parameters in `new` get `RATE`."""
    images, labels = data
    generator = torch.Generator().manual_seed(seed)
    groups = [{'params': [p for name, p in model.named_parameters() if (name in new) == is_new], 'lr': RATE if is_new else rate}
              for is_new in (False, True)]
    optimiser = torch.optim.AdamW([group for group in groups if group['params']], weight_decay=0.05, betas=(0.9, 0.98))
    warm_up = min(50, max(1, iterations // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda i: min(1, (i + 1) / warm_up) * (1 + math.cos(math.pi * i / iterations)) / 2)
    model.train()
    for _ in range(iterations):
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        top, left = torch.randint(images.shape[-1] - WINDOW + 1, (2,), generator=generator).tolist()
        loss = loss_of(model, window(images[chosen], top, left), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimiser.step()
        schedule.step()
        advance()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Top-1 in percent, on the windows in the middle."""
    model.eval()
    hits = [(model(window(images)).argmax(1) == labels).sum() for images, labels in zip(*(t.split(100) for t in data), strict=True)]
    return 100 * torch.stack(hits).sum().item() / len(data[1])


def trained(folder: Path, seed: int, data: tuple[Tensor, Tensor], iterations: int, advance: Callable[[], None]) -> VisionTransformer:
    """The plain model of a seed, from its file if there is one."""
    torch.manual_seed(seed)
    model, path = make_model(), folder / f'vit-{iterations}-{seed}.safetensors'
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval()
    train(model, data, iterations, RATE, seed, advance=advance)
    with replacing(path) as temporary:
        save_file(model.state_dict(), temporary)
    return model


def run_row(teacher: VisionTransformer, setting: Setting | None, seed: int, data: dict, tuning: int) -> dict:
    """Evaluate a setting of the trained model (None: itself) as it comes, and after a short training with it."""
    start, model = time.process_time(), copy.deepcopy(teacher)
    torch.manual_seed(seed)  # of parts that a method brings along
    if setting is not None:
        vitzoo.reduce_tokens(model, setting.method, **setting.options)
    patches = (WINDOW // PATCH) ** 2
    row = {
        'seed': seed, 'method': PLAIN if setting is None else setting.method, 'setting': PLAIN if setting is None else str(setting),
        'accuracy': round(accuracy(model, data['val']), 2),
        'macs': count_macs(on_meta(model), torch.empty(1, 3, WINDOW, WINDOW, device='meta')),
        'tokens': patches if setting is None else model.reduction.schedule(patches, DEPTH)[-1],
    }
    new = frozenset(dict(model.named_parameters())) - frozenset(dict(teacher.named_parameters()))
    train(model, data['train'], tuning, RATE / 10, seed + 1000, tuning_loss(setting and setting.method, teacher), new)
    return {**row, 'tuned_accuracy': round(accuracy(model, data['val']), 2), 'tuning_iterations': tuning,
            'cpu_seconds': round(time.process_time() - start, 1),
            **{module.__name__: module.__version__.partition('+')[0] for module in (vitzoo, torch, timm)}}


def run(methods: Sequence[str], seeds: Sequence[int], path: str | Path, folder: str | Path, *, iterations: int = ITERATIONS,
        tuning: int = TUNING, scenes: dict[str, int] | None = None) -> list[dict[str, str]]:
    """All rows that are missing in the CSV, seed by seed; gives all that are there."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    path, folder = Path(path), Path(folder)
    chosen = [None, *settings(methods)]
    done = {row_key(row) for row in read_rows(path)}
    todo = {seed: [s for s in chosen if (seed, PLAIN if s is None else str(s)) not in done] for seed in seeds}
    if not any(todo.values()):
        return read_rows(path)
    data = crops(folder) if scenes is None else crops(folder, scenes)
    columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        rows = bar.add_task('rows', total=sum(map(len, todo.values())))
        for seed, missing in todo.items():
            if not missing:
                continue
            training = bar.add_task(f'seed {seed}', total=iterations)
            model = trained(folder, seed, data['train'], iterations, lambda task=training: bar.advance(task))
            bar.update(training, visible=False)
            for setting in missing:
                row = run_row(model, setting, seed, data, tuning)
                append_row(path, {**row, 'iterations': iterations})
                bar.console.print(f'seed {seed}, {row["setting"]}: {row["accuracy"]} %, tuned {row["tuned_accuracy"]} %', markup=False)
                bar.advance(rows)
    return read_rows(path)


def row_key(row: dict) -> tuple[int, str]:
    return int(row['seed']), row['setting']


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """Rows of the CSV, as text; none if there is no file. ValueError if its columns are others."""
    return rows_of.read(path, COLUMNS)


def append_row(path: str | Path, row: dict) -> None:
    """Add a row, in the place of one with the same key."""
    rows_of.append(path, COLUMNS, row, row_key)
