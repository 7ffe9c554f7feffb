"""The OpenMMLab bridge: `type='vitzoo.Backbone'` in MMDetection, MMSegmentation and plain MMEngine.

Import it before mmdet or mmseg. Importing it registers our backbone, classifier, hooks and what else configs name under the scope `vitzoo`,
lets mmcv-lite do without a compiler (`vitzoo.mm.ops`), has mmengine read checkpoints by our reader (`vitzoo.mm.safe_load`) and find the
shipped configs as `vitzoo::...` (`vitzoo.mm.shipped`).
"""
from vitzoo.extras import require

require('mmengine', 'mm')

from .backbone import Backbone  # noqa: E402
from .classification import Accuracy, Classifier, ImageFolder  # noqa: E402
from .config import set_backbone, setup  # noqa: E402
from .fsdp import FSDPStrategy  # noqa: E402
from .hooks import ProgressBarHook, ReseedHook, keep_worker_seed  # noqa: E402
from .losses import ClassDiceLoss  # noqa: E402
from .ops import activate  # noqa: E402
from .optim import LayerDecayConstructor  # noqa: E402
from .own_data import check_data, set_data  # noqa: E402
from .safe_load import allow_runner_checkpoints, check_resumable, read_for_mmengine  # noqa: E402
from .samplers import RepeatAugSampler  # noqa: E402
from .shipped import config_path, register_configs  # noqa: E402
from .whole import check_load_from, load_whole  # noqa: E402

activate()
allow_runner_checkpoints()
read_for_mmengine()
register_configs()

__all__ = [
    'Accuracy', 'Backbone', 'ClassDiceLoss', 'Classifier', 'FSDPStrategy', 'ImageFolder', 'LayerDecayConstructor', 'ProgressBarHook',
    'RepeatAugSampler', 'ReseedHook', 'check_data', 'check_load_from', 'check_resumable', 'config_path', 'keep_worker_seed', 'load_whole',
    'set_backbone', 'set_data', 'setup',
]
