"""Files that have to hold all of a detector or segmentor: what a backbone's or a classifier's file would leave random is named."""
import os
import re

from mmengine.config import Config
from torch import nn

from vitzoo.weights import LoadReport, load_checkpoint

from .safe_load import read_content

__all__ = ['check_load_from', 'load_whole']

_ADVICE = ("A backbone's weights are for training, by model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...) or "
           'model.backbone.checkpoint_path=FILE.')
_OTHERS = ('backbone', 'data_preprocessor', 'train_cfg', 'test_cfg', 'init_cfg')  # of a model's config, what is no neck and no head


def load_whole(model: nn.Module, source: str | os.PathLike | dict, *, use_ema: bool = False) -> LoadReport:
    """`vitzoo.load_checkpoint` for a file that is to give a detector, segmentor or classifier all its weights.

    Raises:
        ValueError: as there, and if entries of the model would stay as they were initialised. It is then changed, and of no use.
    """
    report = load_checkpoint(model, source, use_ema=use_ema)
    loaded = {*report.loaded}
    new = [name for name in model.state_dict() if name not in loaded and not name.endswith('.num_batches_tracked')]
    if new:
        name = 'The checkpoint' if isinstance(source, dict) else source
        raise ValueError(f'{name} lacks {len(new)} entries of {type(model).__name__}, such as {new[0]}: expected the file of a whole '
                         f'model, not of a backbone or classifier. {_ADVICE}')
    return report


def check_load_from(cfg: Config) -> None:
    """Refuse a config whose `load_from` is a file without any neck or head, which mmengine would leave random with no more than a warning;
    or, of a `vitzoo.Classifier`, one in a model's own names, of which it would take nothing.

    Heads for other classes are no fault: whoever trains on from a detector has them.

    Raises:
        ValueError: it is the file of a backbone or classifier, or cannot be read.
    """
    source, model = cfg.get('load_from'), cfg.get('model') or {}
    is_classifier = model.get('type') == 'vitzoo.Classifier'
    parts = ['model'] if is_classifier else [name for name, part in model.items() if isinstance(part, dict | list) and name not in _OTHERS]
    if not source or cfg.get('resume') or not parts or not (is_classifier or model.get('backbone')):
        return
    content = read_content(source)
    content = content.get('state_dict', content) if isinstance(content, dict) else {}
    names = re.compile(rf'((module|_orig_mod)\.)*({"|".join(map(re.escape, parts))})\.')
    if any(names.match(str(name)) for name in content):
        return
    if is_classifier:
        raise ValueError(f'load_from={str(source)!r} is no file of a vitzoo.Classifier: none of its names starts with model. Take '
                         'model.checkpoint_path=FILE instead, which reads any published file and resets the head for other classes')
    raise ValueError(f'load_from={str(source)!r} holds nothing of {", ".join(parts)}: it is the file of a backbone or classifier, and '
                     f'load_from takes one of a whole {model.get("type")}. {_ADVICE}')
