"""What a reduction method costs and keeps, setting by setting, against the model as it is."""
import copy
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.data import resolve_data_config
from torch import Tensor, nn

from ..arguments import check_range, check_types, show
from ..facts import float_dtype
from ..layers import check_image, precision_of
from ..profiling import count_macs, on_meta, take_turns
from .apply import Reduced, find_transformer, reduce_tokens, restore_tokens
from .method import Method
from .settings import Setting, default_settings

CLOCKS = {'eager': 'PyTorch', 'onnx': 'ONNX Runtime'}
BATCH = 8  # images at a time, for what is not timed


@dataclass(frozen=True)
class Comparison:
    """A setting, what it costs and how far it is from the model without it. What does not apply, or was not asked for, is None.

    tokens: patch tokens behind the last block.
    macs: multiply-adds of an image; share: as a part of the plain model's.
    latency_ms: 'eager' and 'onnx', one image on one thread, median CPU time; ratio: of the times within a round, against the plain model,
        as (median, lowest, highest).
    top1: share of images with the same likeliest class.
    feature: mean cosine of what the head's last layer gets. dense: mean cosine over all places of the last map, restored to the full grid.
    overlap: how much of the choice stays under noise of one grey level: of the patches that are kept the share that is kept again; where
        patches are merged, of the pairs that share a token in either case those that do so in both.
    untrained: parameters that the method brought along and nobody trained.
    """
    method: str | None
    options: dict
    name: str
    tokens: int
    macs: int
    share: float
    latency_ms: dict[str, float] = field(default_factory=dict)
    ratio: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    top1: float | None = None
    feature: float | None = None
    dense: float | None = None
    overlap: float | None = None
    untrained: int = 0
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict:
        return asdict(self)


@check_types
def compare(
        model: nn.Module,
        images: Tensor,
        settings: Iterable[Setting | Method] | None = None,
        *,
        latency: bool = True,
        export: bool = True,
        rounds: int = 5,
        grey_level: float | Sequence[float] | None = None,
        progress: Callable[[str], None] = lambda text: None,
) -> list[Comparison]:
    """Reduce a transformer's tokens in several ways and say what each costs and changes; the first row is the plain model.

    Args:
        model: as for `reduce_tokens`; it is not changed. If its tokens are reduced already, the parts that its method has learned serve for
            that method.
        images: a batch (B, C, H, W) as the model takes it.
        settings: those of `fitting_settings`, if None; also methods of your own.
        latency: time one image on one thread, in turns with the plain model. export: in ONNX Runtime too (extra `onnx`).
        rounds: of the timing.
        grey_level: what one step of 255 is in `images`, one number or one for each channel; by default from the model's `pretrained_cfg`.
        progress: told what comes next, once a row.

    Raises:
        ValueError: before any work: a model or images that do not fit, options out of range; TypeError: an option that is not there.
        ImportError: exports need an extra that is not installed.
    """
    model = find_transformer(model)
    check_image(images, model.in_chans, like=precision_of(model))
    if not len(images):
        raise ValueError('images is an empty batch; expected at least one image.')
    check_range(1, 1000, rounds=rounds)
    if latency and images.device.type != 'cpu':
        raise ValueError(f'images are on {images.device}: one thread of a CPU is timed; move model and images there, or latency=False.')
    plain = restore_tokens(_twin(model)).eval()
    try:
        macs = _macs(plain, images)
    except (RuntimeError, AssertionError) as e:  # as timm says it
        raise ValueError(f'{type(plain).__name__} does not take images of {images.shape[-2]}x{images.shape[-1]}: {e}') from e
    if settings is None:
        grid = plain.patch_embed.dynamic_feat_size(images.shape[-2:])
        settings, _ = fitting_settings(plain, grid[0] * grid[1])
    settings = list(settings)
    for setting in settings:  # so that a bad one is told before the first is timed
        if not isinstance(setting, Setting | Method):
            raise ValueError(f'settings has {show(setting)}: expected Setting(method, options) or a Method.')
        _reduce(model, setting)
    noisy = images + _noise(plain, images, grey_level)
    with tempfile.TemporaryDirectory(prefix='vitzoo-') as folder, torch.no_grad():
        progress('plain')
        reference = _Outcome(plain, images)
        clock = _Clock(plain, images[:1], rounds, Path(folder) if export else None) if latency else None
        rows = [Comparison(None, {}, 'plain', reference.num_patches, macs, 1., clock.plain_ms() if clock else {})]
        for setting in settings:
            progress(str(setting))
            reduced = _reduce(model, setting)
            rows.append(_compare(reduced, setting, images, noisy, reference, macs, clock, {name for name, _ in model.named_parameters()}))
    return rows


def fitting_settings(model: nn.Module, num_patches: int) -> tuple[list[Setting], dict[str, str]]:
    """`default_settings` of all methods that the model takes, and for each other method the reason why not."""
    fitting, reasons = [], {}
    for setting in default_settings(len(model.blocks), num_patches):
        try:
            _reduce(model, setting)
            fitting.append(setting)
        except ValueError as e:
            reasons[setting.method] = str(e)
    return fitting, reasons


def _compare(model: nn.Module, setting: Setting | Method, images: Tensor, noisy: Tensor, reference: '_Outcome', macs: int,
             clock: '_Clock | None', names: set[str]) -> Comparison:
    outcome, own = _Outcome(model, images), _macs(model, images)
    labels, again = _choice(model, images), _choice(model, noisy)
    latency_ms, ratio, notes = clock(model) if clock else ({}, {}, ())
    same_class = None if outcome.logits is None else (outcome.logits.argmax(1) == reference.logits.argmax(1)).float().mean().item()
    dense = _cosine(outcome.map, reference.map) if outcome.map.shape == reference.map.shape else None
    method, options = _method_of(setting)
    return Comparison(
        method, options, str(setting), outcome.num_patches, own, own / macs, latency_ms, ratio, same_class,
        _cosine(outcome.feature, reference.feature), dense, overlap(labels, again),
        sum(p.numel() for name, p in model.named_parameters() if name not in names), notes)


def _twin(model: nn.Module) -> nn.Module:
    """A copy that shares its weights with the model."""
    return copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})


def _method_of(setting: Setting | Method) -> tuple[str, dict]:
    """Its name and its options."""
    if isinstance(setting, Method):
        return type(setting).__name__, {option.name: getattr(setting, option.name) for option in fields(setting)}
    return setting.method, dict(setting.options)


def _reduce(model: nn.Module, setting: Setting | Method) -> nn.Module:
    method, options = (setting, {}) if isinstance(setting, Method) else (setting.method, setting.options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of parts that are to be learned
        try:
            return reduce_tokens(_twin(model), method, **options).eval()
        except (ValueError, TypeError) as e:
            raise type(e)(f'{setting}: {e}') from None


def _macs(model: nn.Module, images: Tensor) -> int:
    return count_macs(on_meta(model), torch.empty(1, *images.shape[1:], device='meta', dtype=float_dtype(model)))


class _Outcome:
    """What a model makes of images: logits (B, K) or None, feature (B, C), map (B, C, h, w), and the number of patch tokens at the end."""

    def __init__(self, model: nn.Module, images: Tensor):
        parts = []
        for batch in images.split(BATCH):
            tokens, maps = model.forward_intermediates(batch, indices=1, norm=True)
            logits = model.forward_head(tokens) if model.num_classes else None
            parts.append((logits, model.forward_head(tokens, pre_logits=True), maps[0]))
        logits, features, maps = zip(*parts, strict=True)
        self.logits = None if logits[0] is None else torch.cat(logits)
        self.feature, self.map = torch.cat(features), torch.cat(maps)
        reduced = isinstance(model, Reduced)
        self.num_patches = model.forward_tokens(images[:1]).num_patches if reduced else self.map.shape[2] * self.map.shape[3]


def _choice(model: nn.Module, images: Tensor) -> Tensor | None:
    labels = [patch_labels(model, batch) for batch in images.split(BATCH)]
    return None if labels[0] is None else torch.cat(labels)


def patch_labels(model: nn.Module, images: Tensor) -> Tensor | None:
    """For each patch the token behind the last block that it is part of, (B, N0); -1 for none. None if there are as many as at first."""
    tokens = model.forward_tokens(images)
    return None if tokens.num_patches == tokens.grid[0] * tokens.grid[1] else model.reduction.labels(tokens)


def overlap(labels: Tensor | None, others: Tensor | None) -> float | None:
    """How much two choices (B, N0) have in common, 0 to 1, mean over images; see `Comparison`."""
    if labels is None or others is None:
        return None
    if (labels < 0).any():
        kept, again = labels >= 0, others >= 0
        return ((kept & again).sum(1) / kept.sum(1)).mean().item()
    pairs, again = (x[:, :, None] == x[:, None] for x in (labels, others))
    apart = ~torch.eye(labels.shape[1], dtype=torch.bool, device=labels.device)
    both, either = (pairs & again & apart).sum((1, 2)), ((pairs | again) & apart).sum((1, 2))
    return torch.where(either > 0, both / either.clamp_min(1), 1.).mean().item()


def _cosine(x: Tensor, y: Tensor) -> float:
    """Over channels, the second axis; mean over the rest."""
    return F.cosine_similarity(x.float(), y.float(), dim=1).mean().item()


def _noise(model: nn.Module, images: Tensor, grey_level: float | Sequence[float] | None) -> Tensor:
    """A grey level up or down, at random, for each value."""
    if grey_level is None:
        data = resolve_data_config(pretrained_cfg=getattr(model, 'pretrained_cfg', None) or {})
        grey_level = [1 / (255 * std) for std in data['std']]
    step = torch.as_tensor(grey_level, dtype=images.dtype, device=images.device).reshape(-1, 1, 1)
    if len(step) not in (1, images.shape[1]):
        step = step.mean(0, keepdim=True)
    signs = torch.randint(0, 2, images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return signs.to(images) * step


def draw(rows: Sequence[Comparison], path: str | Path) -> Path:
    """Draw each kind of agreement against multiply-adds, and the features' against each time that was measured; a PNG.

    Raises ImportError without matplotlib (extra `viz`).
    """
    from ..viz.pareto import Point, draw_pareto
    panels, (plain, *reduced) = {}, rows
    qualities = {'top1': 'same top-1 class', 'feature': 'cosine of features', 'dense': 'cosine of the last map'}
    costs = {('MACs, G', 'macs'): lambda row: row.macs / 1e9,
             **{(f'ms, {CLOCKS[name]}, one image', name): lambda row, name=name: row.latency_ms.get(name) for name in plain.latency_ms}}
    for (cost, what), of in costs.items():
        for quality, title in qualities.items() if what == 'macs' else [('feature', qualities['feature'])]:
            points = [Point(row.method, of(row), *(getattr(row, quality),) * 3) for row in reduced
                      if None not in (of(row), getattr(row, quality))]
            if points:
                panels[title, cost] = [Point(plain.name, of(plain), 1., 1., 1.), *points], None
    return draw_pareto(panels, path)


class _Clock:
    """Times a model in turns with the plain one, in PyTorch and, where there is a folder for its files, in ONNX Runtime."""

    def __init__(self, plain: nn.Module, image: Tensor, rounds: int, folder: Path | None):
        self.plain, self.image, self.rounds, self.folder = plain, image, rounds, folder
        self.session = None if folder is None else self._export(plain)

    def _export(self, model: nn.Module):
        from ..export import export_onnx
        from ..export.verify import open_session
        path = self.folder / 'model.onnx'
        export_onnx(model, path, tuple(self.image.shape[1:]), dynamic_batch=False, rounds=0)
        session = open_session(str(path))
        path.unlink()
        return session

    def plain_ms(self) -> dict[str, float]:
        calls = self._calls(self.plain, self.session)
        timings = take_turns(calls, rounds=self.rounds)
        return {name: timings.median_ms(name) for name in calls}

    def __call__(self, model: nn.Module) -> tuple[dict, dict, tuple[str, ...]]:
        """latency_ms, ratio and notes of a `Comparison`."""
        from ..export import ExportError
        session, notes = None, ()
        if self.session is not None:
            try:
                session = self._export(model)
            except (ExportError, ValueError) as e:
                notes = (f'not exported: {e}',)
        calls, plain = self._calls(model, session), self._calls(self.plain, self.session)
        timings = take_turns({**calls, **{f'plain {name}': plain[name] for name in calls}}, rounds=self.rounds)
        ratio = {}
        for name in calls:
            middle, low, high = timings.speed_up(name, over=f'plain {name}')
            ratio[name] = 1 / middle, 1 / high, 1 / low
        return {name: timings.median_ms(name) for name in calls}, ratio, notes

    def _calls(self, model: nn.Module, session) -> dict[str, Callable]:
        feed = {'image': self.image.float().numpy()}
        calls = {'eager': lambda: model(self.image)}
        return calls if session is None else {**calls, 'onnx': lambda: session.run(None, feed)}
