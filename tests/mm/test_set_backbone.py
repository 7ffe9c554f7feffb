"""Another model in a config: what of the former one stays, and what is fitted to the new one. Files of options: test_configs.py."""
import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
from mmengine.config import Config  # noqa: E402

from vitzoo.mm import config_path, set_backbone, setup  # noqa: E402


def test_set_backbone_keeps_what_is_not_the_models_own():
    cfg = setup(config_path('classification/svit_micro_digits'), cfg_options={'model.stoken_size': [4, 2, 1, 1]})
    set_backbone(cfg, 'resnet18', drop_rate=0.1)
    start = dict(type='Xavier', layer='Linear', distribution='uniform')
    assert cfg.model == dict(
        type='vitzoo.Classifier', model_name='resnet18', num_classes=10, label_smoothing=0.05, init_cfg=start, drop_rate=0.1)
    cfg = setup(config_path('detection/retinanet_svit_micro_digits'), backbone='resnet18')
    assert cfg.model.backbone == dict(type='vitzoo.Backbone', model_name='resnet18', out_indices=(1, 2, 3))
    assert cfg.model.neck.in_channels == [128, 256, 512] and cfg.work_dir.endswith('retinanet_svit_micro_digits-resnet18')


def test_set_backbone_in_official_configs():
    from mmengine.hub import get_config
    cfg = set_backbone(get_config('mmseg::upernet/upernet_r50_4xb2-40k_cityscapes-512x1024.py'), 'svit_micro')
    assert cfg.model.decode_head.in_channels == [32, 64, 128, 192] and cfg.model.auxiliary_head.in_channels == 128
    cfg = set_backbone(get_config('mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'), 'svit_micro')
    assert cfg.model.neck.in_channels == [64, 128, 192]


def test_set_backbone_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match='no backbone'):
        set_backbone(Config(dict(model=dict(type='mmpretrain.X'))), 'svit_micro')
    cfg = setup(config_path('detection/retinanet_svit_micro_digits'))
    with pytest.raises(ValueError, match='neck takes 3 maps, the backbone gives 4'):
        set_backbone(cfg, 'svit_micro', out_indices=(0, 1, 2, 3))
