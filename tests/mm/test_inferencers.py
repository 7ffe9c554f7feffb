"""What mmdet and mmseg offer for trained models works on saved configs and checkpoints of every family, in their own code."""
import pytest
import torch
import zoo

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
from mmengine.runner import Runner  # noqa: E402

from vitzoo.mm import config_path, set_backbone, setup  # noqa: E402

FAMILIES = zoo.slow_if(lambda name: name not in ('svit_micro', 'lookupvit_micro'), zoo.FIRST.values())
CONFIGS = {
    'detection': 'detection/mask-rcnn_svit_micro_digits',
    'segmentation': 'segmentation/upernet_svit_micro_digits',
}


@pytest.fixture(scope='module')
def saved(digits, tmp_path_factory):
    """saved(task, family) -> the config as the Runner dumped it after two iterations, and the checkpoint."""
    done = {}

    def save(task, family):
        if (task, family) not in done:
            work_dir = tmp_path_factory.mktemp('work_dirs') / f'{task}_{family}'
            cfg = setup(config_path(CONFIGS[task]), work_dir=work_dir, seed=0, cfg_options={
                'experiment_name': work_dir.name, 'train_cfg.max_iters': 2, 'train_dataloader.batch_size': 2, 'val_cfg': None,
                'val_dataloader': None, 'val_evaluator': None})
            set_backbone(cfg, family)
            Runner.from_cfg(cfg).train()
            done[task, family] = str(next(work_dir.glob('*.py'))), str(work_dir / 'iter_2.pth')
        return done[task, family]
    return save


@pytest.mark.parametrize('family', FAMILIES)
def test_detection_inferencer(digits, saved, family):
    from mmdet.apis import DetInferencer
    images = [str(p) for p in sorted((digits / 'detection' / 'val').glob('*.png'))[:2]]
    inferencer = DetInferencer(*saved('detection', family), device='cpu', show_progress=False)
    assert inferencer.model.backbone.model_name == family
    result = inferencer(images, batch_size=2, pred_score_thr=0)
    assert len(result['predictions']) == 2
    for prediction in result['predictions']:
        assert len(prediction['bboxes']) == len(prediction['scores']) == len(prediction['labels']) == len(prediction['masks'])
        assert all(0 <= x <= 160 and 0 <= y <= 128 for x, y, *_ in prediction['bboxes'])


@pytest.mark.parametrize('family', FAMILIES)
def test_segmentation_inferencer(digits, saved, family):
    from mmseg.apis import MMSegInferencer
    images = [str(p) for p in sorted((digits / 'segmentation' / 'img_dir' / 'val').glob('*.png'))[:2]]
    inferencer = MMSegInferencer(*saved('segmentation', family), device='cpu', classes=['background'] + [f'digit {d}' for d in range(10)],
                                 palette=[[i, i, i] for i in range(11)])
    assert inferencer.model.backbone.model_name == family
    assert [p.shape for p in inferencer(images)['predictions']] == [(128, 160)] * 2


def test_inference_model(digits, saved):
    from mmdet.apis import inference_detector, init_detector
    config, checkpoint = saved('detection', 'svit_micro')
    model = init_detector(config, checkpoint, device='cpu')
    weights = torch.load(checkpoint, map_location='cpu', weights_only=True)['state_dict']
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    image = next((digits / 'detection' / 'val').glob('*.png'))
    assert inference_detector(model, str(image)).pred_instances.bboxes.shape[1] == 4
