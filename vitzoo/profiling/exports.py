"""Models by name, and the files of them that runtimes read: made once, kept in a folder, found again by the next run."""
import logging
from contextlib import contextmanager
from pathlib import Path

import timm
import torch
from torch import nn

from vitzoo_runtime.files import replacing

PRECISIONS = ('fp32', 'int8')  # of files


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
    """ONNX files in a folder. A file's name says what it is of, by which versions; what could not be exported is kept as a reason."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
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
        from ..export import ExportError, export_onnx
        if precision not in PRECISIONS:
            raise ValueError(f'precision {precision!r}: expected {" or ".join(map(repr, PRECISIONS))}.')
        path = self.path(name, size, reduce=reduce, precision=precision, dynamic_batch=dynamic_batch)
        reason = path.with_suffix('.txt')
        if path.is_file():
            return path
        if reason.is_file():
            raise ExportError(reason.read_text(encoding='utf-8'))
        try:
            if precision == 'int8':
                to_int8(self.get(name, size, reduce=reduce, dynamic_batch=dynamic_batch), path)
            else:
                export_onnx(build(name, size, reduce), path, tuple(size), dynamic_batch=dynamic_batch, rounds=0)
        except (ValueError, ExportError) as e:
            with replacing(reason) as temporary:
                temporary.write_text(str(e), encoding='utf-8')
            raise
        return path


def to_int8(source: Path, target: Path) -> None:
    """Quantise the weights of matrix products to int8, channel by channel, their inputs at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from ..extras import require
    require('onnxruntime', 'onnx')
    with replacing(target) as temporary, _quiet():
        quantize_dynamic(source, temporary, op_types_to_quantize=['MatMul', 'Gemm'], per_channel=True, weight_type=QuantType.QInt8)


@contextmanager
def _quiet():
    """It advises preparations by the root logger, which `export_onnx` has made in its way."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
