"""Models by name, and the files of them that runtimes read: made once, kept in a folder, found again by the next run."""
from pathlib import Path

import timm
import torch
from torch import nn

from vitzoo_runtime.files import replacing

from ..export.quantise import PRECISIONS, quantise_products


def build(name: str, size: tuple[int, int], reduce: str | None = None) -> nn.Module:
    """A registered model, ours or timm's, with random weights, in eval mode, for images of (H, W).

    `reduce` says how its tokens are reduced, as 'tome:r=8'. Raises ValueError where the model does not take that size or method.
    """
    from ..reduction import parse_setting, reduce_tokens
    config = timm.get_pretrained_cfg(name)
    fixed = config.fixed_input_size and tuple(size) != tuple(config.input_size[1:])
    torch.manual_seed(0)
    try:
        model = timm.create_model(name, **({'img_size': size} if fixed else {})).eval()
    except (TypeError, ValueError, AssertionError, RuntimeError) as e:  # as the model says it
        raise ValueError(f'{name} cannot be built for images of {size[0]}x{size[1]}: {e}') from e
    if reduce:
        setting = parse_setting(reduce)
        try:
            reduce_tokens(model, setting.method, **setting.options)
        except ValueError as e:
            raise ValueError(f'{name}, {reduce}: {e}') from e
    return model


class Exports:
    """ONNX files in a folder. A file's name says what it is of, by which versions; what could not be exported is kept as a reason.

    Files in a smaller precision are what `export_onnx` makes, but never refused: neither their speed nor their drift is asked for here.

    derive: where neither the model nor a part of it has a form of its own for int8, make that file of the one in float32, which saves an
        export. A first convolution over patches then stays one.
    """

    def __init__(self, folder: str | Path, *, derive: bool = False):
        self.folder, self.derive = Path(folder), derive
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str, size: tuple[int, int], *, reduce: str | None = None, precision: str = 'fp32',
             dynamic_batch: bool = False) -> Path:
        from .. import __version__
        how = ''.join(c if c.isalnum() or c in '.=_-' else '_' for c in reduce or '')
        parts = [name, how, f'{size[0]}x{size[1]}', 'batch' if dynamic_batch else '', '' if precision == 'fp32' else precision,
                 f'vitzoo{__version__}', f'torch{torch.__version__}', f'timm{timm.__version__}']
        return self.folder / f'{"-".join(filter(None, parts))}.onnx'

    def get(self, name: str, size: tuple[int, int], *, reduce: str | None = None, precision: str = 'fp32',
            dynamic_batch: bool = False) -> Path:
        """The file, made now if it is not there.

        Raises:
            ValueError, ExportError: if the model cannot be exported, now or in an earlier run.
        """
        from ..export import ExportError
        if precision not in PRECISIONS:
            raise ValueError(f'precision {precision!r}: expected {", ".join(map(repr, PRECISIONS))}.')
        path = self.path(name, size, reduce=reduce, precision=precision, dynamic_batch=dynamic_batch)
        reason = path.with_suffix('.txt')
        if path.is_file():
            return path
        if reason.is_file():
            raise ExportError(reason.read_text(encoding='utf-8'))
        try:
            model = build(name, size, reduce)
            if precision == 'int8' and self.derive and not any(callable(getattr(m, 'deploy', None)) for m in model.modules()):
                to_int8(self.get(name, size, reduce=reduce, dynamic_batch=dynamic_batch), path)
            else:
                _export(model, path, size, precision, dynamic_batch)
        except (ValueError, ExportError) as e:
            with replacing(reason) as temporary:
                temporary.write_text(str(e), encoding='utf-8')
            raise
        return path


def _export(model: nn.Module, path: Path, size: tuple[int, int], precision: str, dynamic_batch: bool) -> None:
    from PIL import Image

    from ..export import export_onnx
    # whatever the picture: it is looked at once, and forced means that what it says does not count
    picture = Image.new('RGB', (64, 64), 'grey')
    smaller = {} if precision == 'fp32' else dict(precision=precision, force_precision=True, calibration=[picture])
    export_onnx(model, path, tuple(size), dynamic_batch=dynamic_batch, rounds=0, **smaller)


def to_int8(source: Path, target: Path) -> None:
    """Write an ONNX file with its matrix products in int8, as `export_onnx` has them, but unchecked.

    Raises ExportError if it cannot be quantised.
    """
    with replacing(target) as temporary:
        quantise_products(source, temporary)
