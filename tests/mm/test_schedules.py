"""What `setup` does about rates: schedules that cannot be, rates that follow the batch, mixed precision, weights to start from."""
import pytest
import timm
import torch

pytest.importorskip('mmengine')
from mmengine.config import Config  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from torch.utils.data import TensorDataset  # noqa: E402

from vitzoo.mm import config_path, setup  # noqa: E402

MICRO, IMAGENET = 'classification/svit_micro_digits', 'classification/svit_small_in1k'


def options_in(error):
    """What a message has behind --cfg-options, as a shell would give it."""
    text = str(error.value).split('--cfg-options ')[1].split(', or ')[0]
    return {key: int(value) for key, value in (part.split('=') for part in text.split())}


@pytest.mark.parametrize('name, length', [(IMAGENET, {'train_cfg.max_epochs': 3}), ('segmentation/upernet_svit_small_160k_ade20k',
                                                                                   {'train_cfg.max_iters': 700})])
def test_warm_up_longer_than_training_is_refused_with_what_would_do(name, length):
    late = {'param_scheduler.1.end': length.get('train_cfg.max_iters', 3)}
    with pytest.raises(ValueError, match=r'param_scheduler.1: \w+ would begin at') as error:
        setup(config_path(name), cfg_options={**length, **late})
    advice = options_in(error)
    assert {'param_scheduler.0.end', 'param_scheduler.1.begin'} == advice.keys() and 0 < advice['param_scheduler.0.end'] < 100
    setup(config_path(name), cfg_options={**length, **late, **advice})
    longer = str(error.value).split(', or ')[-1].split('=')
    setup(config_path(name), cfg_options={**length, longer[0]: int(longer[1]), 'param_scheduler.1.end': int(longer[1])})


def test_warm_up_without_end_is_told(monkeypatch):
    said = []
    monkeypatch.setattr('vitzoo.mm.schedules.print_log', lambda text, *_: said.append(text))
    setup(config_path(MICRO))
    assert said == []
    setup(config_path(MICRO), cfg_options={'train_cfg.max_iters': 10})
    assert len(said) == 1 and '--cfg-options param_scheduler.0.end=1' in said[0]


def train_toy(cfg, tmp_path):
    """Rates of a run by the config's optimizer and schedules over a linear layer."""
    from mmengine.model import BaseModel

    class Toy(BaseModel):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, x, mode='loss'):
            rates.append(runner.optim_wrapper.optimizer.param_groups[0]['lr'])
            return dict(loss=self.layer(x[0]).square().sum())

    rates, loader = [], dict(cfg.train_dataloader, num_workers=0, dataset=TensorDataset(torch.ones(20, 2)))
    runner = Runner(Toy(), str(tmp_path), loader, optim_wrapper=cfg.optim_wrapper, param_scheduler=cfg.param_scheduler,
                    train_cfg=cfg.train_cfg, auto_scale_lr=cfg.get('auto_scale_lr'), experiment_name=tmp_path.name,
                    default_hooks=dict(checkpoint=None))
    runner.train()
    return rates


def test_lowest_rate_follows_the_batch(tmp_path):
    """With 4 images instead of 1024 mmengine makes 3.9e-6 of 1e-3, less than the cosine's end at 1e-5 was."""
    cfg = setup(config_path(IMAGENET), cfg_options={
        'train_cfg.max_epochs': 6, 'param_scheduler.0.end': 1, 'param_scheduler.1.begin': 1, 'train_dataloader.batch_size': 4})
    cfg.optim_wrapper.pop('constructor'), cfg.optim_wrapper.pop('paramwise_cfg')
    rates = train_toy(cfg, tmp_path)
    top = 1e-3 * 4 / 1024
    assert len(rates) == 30 and max(rates) == pytest.approx(top) and rates[0] == pytest.approx(top / 1000)
    assert rates[5:] == sorted(rates[5:], reverse=True) and rates[-1] == pytest.approx(top / 100, rel=0.5)


def test_setup_scales_where_it_is_asked():
    base = {'param_scheduler.1.type': 'CosineAnnealingLR', 'param_scheduler.1.eta_min': 1e-4, 'param_scheduler.1.power': None}
    with pytest.raises(ValueError, match='base_batch_size'):
        setup(config_path(MICRO), auto_scale_lr=True)
    options = {**base, 'auto_scale_lr': dict(base_batch_size=64)}
    off = setup(config_path(MICRO), cfg_options=options)
    assert 'enable' not in off.auto_scale_lr and off.param_scheduler[1].eta_min == 1e-4
    on = setup(config_path(MICRO), cfg_options=options, auto_scale_lr=True)
    for _ in range(2):  # a config that went through it once is none the worse
        assert on.auto_scale_lr.enable and 'eta_min' not in on.param_scheduler[1]
        assert on.param_scheduler[1].eta_min_ratio == pytest.approx(0.1)
        on = setup(on, auto_scale_lr=True)


def test_rates_that_cannot_follow_are_refused():
    with pytest.raises(ValueError, match=r'param_scheduler.1: PolyLR ends at eta_min=0.0001.*param_scheduler.1.eta_min=0'):
        setup(config_path(MICRO), auto_scale_lr=True, cfg_options={
            'auto_scale_lr': dict(base_batch_size=64), 'param_scheduler.1.eta_min': 1e-4})


def test_mixed_precision(monkeypatch):
    assert setup(config_path(MICRO), amp=True).optim_wrapper.type == 'OptimWrapper'  # no GPU here
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    cfg = setup(config_path(MICRO), amp=True)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.loss_scale, cfg.optim_wrapper.optimizer.lr) == ('AmpOptimWrapper', 'dynamic', 1e-3)
    cfg = setup(config_path(MICRO), amp=True, cfg_options={'optim_wrapper.dtype': 'bfloat16', 'optim_wrapper.loss_scale': 4.})
    assert (cfg.optim_wrapper.dtype, cfg.optim_wrapper.loss_scale) == ('bfloat16', 4.)
    with pytest.raises(ValueError, match="type 'ApexOptimWrapper'"):
        setup(config_path(MICRO), amp=True, cfg_options={'optim_wrapper.type': 'ApexOptimWrapper'})


def test_load_from(tmp_path):
    """The file of a classifier is refused: in a detector it would load nothing, and in a vitzoo.Classifier neither."""
    state, file = timm.create_model('svit_micro', num_classes=10).state_dict(), tmp_path / 'classifier.pth'
    torch.save(state, file)
    detector = config_path('detection/retinanet_svit_micro_digits')
    for options in dict(load_from=file), dict(cfg_options={'load_from': str(file)}):
        with pytest.raises(ValueError, match=r'classifier.pth.*neck, bbox_head.*init_cfg.*model.backbone.checkpoint_path=FILE'):
            setup(detector, **options)
    with pytest.raises(ValueError, match=r'classifier.pth.*model.checkpoint_path=FILE'):
        setup(config_path(MICRO), load_from=file)
    torch.save({'state_dict': {f'model.{name}': value for name, value in state.items()}}, file)
    assert setup(config_path(MICRO), load_from=file).load_from == str(file)

    gone = str(tmp_path / 'gone.pth')
    with pytest.raises(ValueError, match='gone.pth'):
        setup(detector, load_from=gone)
    assert setup(Config(dict(model=dict(), load_from=gone, work_dir='x'))).load_from == gone  # to predict nobody needs it
