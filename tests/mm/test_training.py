"""Training, resuming, distributed training and inference through the shipped configs, on a few digit scenes."""
import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import zoo

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
from mmengine.registry import MODELS, init_default_scope  # noqa: E402
from mmengine.runner import Runner  # noqa: E402

import vitzoo  # noqa: E402
from vitzoo.mm import config_path, setup  # noqa: E402

ROOT = Path(__file__).parents[2]
CLASSIFICATION = 'classification/svit_micro_digits'
DETECTION = 'detection/mask-rcnn_svit_micro_digits'
SEGMENTATION = 'segmentation/fpn_svit_micro_digits'


def train(name, work_dir, **options):
    cfg = setup(config_path(name), work_dir=work_dir, seed=0, cfg_options={
        'experiment_name': work_dir.name, 'train_cfg.max_iters': 2, 'train_dataloader.batch_size': 2, **options})
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def scalars(work_dir):
    """Logged values by iteration, of all runs in the folder; later runs win. Validation is at the key 'val'."""
    rows = {}
    for file in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            rows[row['step'] if 'loss' in row else 'val'] = row
    return rows


def test_classifier(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('FORCE_COLOR', '1')  # rich takes the output for a terminal and shows its bar
    runner = train(CLASSIFICATION, tmp_path / 'classifier', **{'train_cfg.max_iters': 20, 'train_dataloader.batch_size': 16})
    shown = capsys.readouterr().out
    assert 'training, loss' in shown and '20/20' in shown

    rows = scalars(tmp_path / 'classifier')
    assert rows[20]['loss'] < rows[10]['loss']
    runner.model.eval()
    with torch.inference_mode():
        right = [p == t for x, t in runner.val_dataloader.dataset for p in runner.model(x[None]).argmax(1).tolist()]
    assert rows['val']['top1'] == pytest.approx(100 * sum(right) / len(right), abs=3)  # one image may hang on a rounding


def test_progress_bar_is_for_terminals(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv('FORCE_COLOR', raising=False)
    train(CLASSIFICATION, tmp_path / 'classifier')
    assert 'training, loss' not in capsys.readouterr().out


def test_resumed_training_draws_the_same_random_numbers(digits, tmp_path):
    """Crops, drop path and the weights that come of them; without the hook they differ."""
    def weights(name, **options):
        return train(CLASSIFICATION, tmp_path / name, **{
            'train_cfg.max_iters': 4, 'default_hooks.checkpoint.interval': 2, 'default_hooks.checkpoint.max_keep_ckpts': 2,
            'model.drop_path_rate': 0.2, 'val_cfg': None, 'val_dataloader': None, 'val_evaluator': None, **options}).model.state_dict()

    resume = dict(resume=True, load_from=str(tmp_path / 'whole' / 'iter_2.pth'))
    whole = weights('whole')
    torch.testing.assert_close(weights('resumed', **resume), whole, rtol=0, atol=0)
    other = weights('without', custom_hooks=[], **resume)
    assert any(not torch.equal(value, whole[name]) for name, value in other.items())


@pytest.mark.slow
@pytest.mark.parametrize('name', zoo.FIRST.values())
def test_learns_in_bfloat16(digits, name):
    """A step of a detector under autocast on a CPU, the nearest to mixed precision on a GPU."""
    torch.manual_seed(0)
    cfg = setup(config_path('detection/retinanet_svit_micro_digits'), backbone=name, cfg_options={
        'train_dataloader.batch_size': 1, 'optim_wrapper.clip_grad': None})
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model).train()
    data = model.data_preprocessor(next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0))), training=True)
    seen = []
    for dtype in torch.float32, torch.bfloat16:
        torch.manual_seed(0)
        with torch.autocast('cpu', dtype, enabled=dtype is not torch.float32):
            loss, _ = model.parse_losses(model(**data, mode='loss'))
        model.zero_grad()
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        assert all(g is not None and g.isfinite().all() for g in gradients)
        seen.append((loss.item(), torch.cat([g.flatten() for g in gradients])))
    (loss, gradient), (rough_loss, rough_gradient) = seen
    assert rough_loss != loss and rough_loss == pytest.approx(loss, rel=0.02)
    assert torch.cosine_similarity(gradient, rough_gradient, dim=0) > 0.9


@pytest.mark.slow
def test_frozen_stages_and_checkpointing(digits, tmp_path):
    """Frozen stages stay as they were, their running statistics too; recomputed activations give the same weights."""
    def train(name, **options):
        runner = Runner.from_cfg(setup(config_path('detection/retinanet_svit_micro_digits'), work_dir=tmp_path / name, cfg_options={
            'experiment_name': name, 'train_cfg.max_iters': 1, 'train_dataloader.batch_size': 2, 'model.backbone.frozen_stages': 2,
            'model.backbone.drop_path_rate': 0.05, 'val_cfg': None, 'val_dataloader': None, 'val_evaluator': None, **options}))
        before = copy.deepcopy(runner.model.state_dict())
        runner.train()
        return before, runner.model.state_dict()

    before, after = train('plain')
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    frozen = tuple(f'backbone.body.model.{part}' for part in ('stem', 'stages.0', 'stages.1'))
    assert not any(name.startswith(frozen) for name in moved)
    assert moved == {name for name in after if not name.startswith(frozen)}
    _, again = train('recomputed', **{'model.backbone.with_cp': True})
    statistics = [name for name in after if 'running_' in name or name.endswith('num_batches_tracked')]  # recomputing updates them twice
    assert all(torch.equal(value, after[name]) for name, value in again.items() if name not in statistics)


@pytest.mark.slow
def test_averaged_weights_of_a_detector(digits, tmp_path):
    config = 'detection/retinanet_svit_micro_digits'
    hooks = [dict(type='EMAHook', momentum=0.5, update_buffers=True), dict(type='vitzoo.ReseedHook')]
    runner = train(config, tmp_path, **{'custom_hooks': hooks})
    averaged = torch.load(tmp_path / 'iter_2.pth', weights_only=True)['state_dict']
    assert not torch.equal(averaged['neck.fpn_convs.0.conv.weight'], runner.model.state_dict()['neck.fpn_convs.0.conv.weight'])
    detector, backbone = MODELS.build(runner.cfg.model), vitzoo.DenseBackbone('svit_micro', (1, 2, 3))
    for model, prefix in (detector, ''), (backbone, 'backbone.'):
        vitzoo.load_checkpoint(model, tmp_path / 'iter_2.pth', use_ema=True)
        assert all(torch.equal(value, averaged[prefix + name]) for name, value in model.state_dict().items())


HOOKS = '''
import os
import signal
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook


class Kill(Hook):
    """The power fails in iteration 7, after the checkpoint of iteration 6."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 6:
            os.kill(os.getpid(), signal.SIGKILL)


class Dump(Hook):
    def after_train(self, runner):
        model = getattr(runner.model, 'module', runner.model)
        parts = {name: getattr(p, 'to_local', lambda: p)().detach() for name, p in model.named_parameters()}
        torch.save(parts, os.path.join(runner.work_dir, f'rank{get_rank()}.pth'))
        torch.save(dict(model.named_buffers()), os.path.join(runner.work_dir, f'buffers{get_rank()}.pth'))
'''


@pytest.fixture
def run(digits, tmp_path):
    (tmp_path / 'hooks_of_the_test.py').write_text(HOOKS)
    path = os.pathsep.join([str(ROOT), str(tmp_path), os.environ.get('PYTHONPATH', '')])
    bins = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])

    def run(*command):
        return subprocess.run([str(c) for c in command], env={**os.environ, 'PYTHONPATH': path, 'PATH': bins, 'OMP_NUM_THREADS': '1'},
                              cwd=tmp_path, capture_output=True, text=True)
    return run


EVERY_STEP = ['train_dataloader.batch_size=2', 'default_hooks.logger.interval=1', 'log_processor.window_size=1']
RANDOM = {  # what else draws random numbers: proposals that are sampled, augmentation
    DETECTION: ['model.backbone.drop_path_rate=0.2'],
    SEGMENTATION: ['model.backbone.drop_path_rate=0.2', 'model.decode_head.dropout_ratio=0.1'],
    CLASSIFICATION: ['model.drop_path_rate=0.2'],
}


def kill_and_resume(run, config, work_dirs, options, saved):
    """Logs of a run, and of one that was killed in iteration 7 and resumed in a process of its own."""
    command = [sys.executable, ROOT / 'tools' / 'train.py', config_path(config), '--work-dir']
    whole = run(*command, work_dirs / 'whole', '--cfg-options', *options)
    assert whole.returncode == 0, whole.stderr
    killed = run(*command, work_dirs / 'parts', '--cfg-options', *options, 'custom_hooks.0.type=hooks_of_the_test.Kill')
    assert killed.returncode == -9, killed.stderr
    assert (work_dirs / 'parts' / saved).is_file() and 7 not in scalars(work_dirs / 'parts')
    resumed = run(*command, work_dirs / 'parts', '--resume', '--cfg-options', *options)
    assert resumed.returncode == 0, resumed.stderr
    return scalars(work_dirs / 'whole'), scalars(work_dirs / 'parts')


def assert_same(got, expected):
    """Losses, gradient norms, rates and metrics, to the last digit that is logged."""
    assert set(got) == set(expected)
    for step, row in expected.items():
        for name in set(row) - {'time', 'data_time', 'memory'}:
            assert got[step][name] == pytest.approx(row[name], rel=1e-6), f'{name} at {step}'


@pytest.mark.slow
@pytest.mark.parametrize('config', RANDOM)
def test_killed_training_resumes(run, tmp_path, config):
    options = [*EVERY_STEP, *RANDOM[config], 'train_cfg.max_iters=9', 'default_hooks.checkpoint.interval=3']
    expected, got = kill_and_resume(run, config, tmp_path, options, 'iter_6.pth')
    assert set(expected) == {*range(1, 10), 'val'}
    assert_same(got, expected)
    if config != SEGMENTATION:
        return

    tested = run(sys.executable, ROOT / 'tools' / 'test.py', config_path(config), tmp_path / 'parts' / 'iter_9.pth',
                 '--work-dir', tmp_path / 'test', '--cfg-options', 'test_dataloader.dataset.data_prefix.img_path=img_dir/val',
                 'test_dataloader.dataset.data_prefix.seg_map_path=ann_dir/val')  # of which the training told
    assert tested.returncode == 0, tested.stderr
    assert f"mIoU: {got['val']['mIoU']:.4f}" in tested.stdout + tested.stderr


@pytest.mark.slow
def test_killed_training_resumes_from_the_last_epoch(run, digits, tmp_path, monkeypatch):
    """The ImageNet recipe on digit scenes: epochs of five iterations, RandAugment in worker processes, mixup, averaged weights."""
    monkeypatch.setenv('IMAGENET', str(digits / 'classification'))
    options = ['train_dataloader.batch_size=16', 'train_dataloader.num_workers=2', 'val_dataloader.num_workers=0', *EVERY_STEP[1:],
               'model.model_name=svit_micro', 'model.num_classes=10', 'train_dataloader.dataset.input_size=48',
               'val_dataloader.dataset.input_size=48', 'train_cfg.max_epochs=2', 'param_scheduler.0.end=1', 'param_scheduler.1.begin=0']
    expected, got = kill_and_resume(run, 'classification/svit_small_in1k', tmp_path, options, 'epoch_1.pth')
    assert set(expected) == {*range(1, 11), 'val'}
    assert_same(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize('config', ['detection/mask-rcnn_svit_micro_digits', 'segmentation/upernet_svit_micro_digits', CLASSIFICATION])
def test_two_processes_end_with_equal_weights(run, tmp_path, config):
    result = run(ROOT / 'tools' / 'dist_train.sh', config_path(config), 2, '--work-dir', tmp_path / 'work', '--cfg-options',
                 'train_cfg.max_iters=3', 'train_dataloader.batch_size=2', 'custom_hooks.0.type=hooks_of_the_test.Dump')
    assert result.returncode == 0, result.stderr
    first, second = (torch.load(tmp_path / 'work' / f'rank{rank}.pth', weights_only=True) for rank in range(2))
    assert first and first.keys() == second.keys() and all(torch.equal(v, second[k]) for k, v in first.items())
    if 'upernet' in config:
        assert setup(config_path(config)).model.decode_head.norm_cfg.type == 'SyncBN'  # what the processes had to replace


@pytest.mark.slow
def test_sharded_training(run, tmp_path):
    """Two processes with half the weights each do what two with all of them do, and resume from their file."""
    model = vitzoo.mm.Classifier('svit_micro', num_classes=10)
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'start.pth')
    sharded = ['runner_type=FlexibleRunner', 'strategy.type=vitzoo.FSDPStrategy']

    def train(name, *options):
        result = run(ROOT / 'tools' / 'dist_train.sh', config_path(CLASSIFICATION), 2, '--work-dir', tmp_path / name, '--cfg-options',
                     *EVERY_STEP, 'train_cfg.max_iters=4', 'default_hooks.checkpoint.interval=2',
                     'default_hooks.checkpoint.max_keep_ckpts=9', 'custom_hooks.0.type=hooks_of_the_test.Dump', *options)
        assert result.returncode == 0, result.stderr
        weights = torch.load(tmp_path / name / 'iter_4.pth', weights_only=True)['state_dict']
        parts = [torch.load(tmp_path / name / f'rank{rank}.pth', weights_only=True) for rank in range(2)]
        return scalars(tmp_path / name), weights, parts

    losses, weights, _ = train('whole', f'load_from={tmp_path / "start.pth"}')
    sharded_losses, sharded_weights, parts = train('sharded', f'load_from={tmp_path / "start.pth"}', *sharded)
    for step in range(1, 5):
        assert sharded_losses[step]['loss'] == pytest.approx(losses[step]['loss'], rel=1e-4)
        assert sharded_losses[step]['grad_norm'] == pytest.approx(losses[step]['grad_norm'], rel=1e-3)
    assert sharded_weights.keys() == weights.keys()
    torch.testing.assert_close(sharded_weights, weights, rtol=1e-3, atol=1e-4)
    sizes = [sum(p.numel() for p in part.values()) for part in parts]
    total = sum(p.numel() for p in model.parameters())
    assert sum(sizes) == total and max(sizes) < 0.6 * total
    statistics = [torch.load(tmp_path / 'sharded' / f'buffers{rank}.pth', weights_only=True) for rank in range(2)]
    torch.testing.assert_close(statistics[1], statistics[0], rtol=0, atol=0)  # of all processes as in the file, else resuming changes them

    resumed_losses, resumed_weights, _ = train('resumed', f'load_from={tmp_path / "sharded" / "iter_2.pth"}', 'resume=True', *sharded)
    assert_same(resumed_losses, {step: row for step, row in sharded_losses.items() if step not in (1, 2)})
    torch.testing.assert_close(resumed_weights, sharded_weights, rtol=0, atol=0)

    alone = timm.create_model('svit_micro', num_classes=10)
    vitzoo.load_checkpoint(alone, tmp_path / 'resumed' / 'iter_4.pth')
    torch.testing.assert_close(alone.state_dict(), {k.removeprefix('model.'): v for k, v in resumed_weights.items()}, rtol=0, atol=0)
