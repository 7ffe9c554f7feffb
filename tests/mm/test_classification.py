"""`vitzoo.Classifier` and what it trains with: the ImageNet recipes of all families, timm's mixup and losses, samplers and metrics."""
import math
import re

import numpy as np
import pytest
import timm
import torch
import zoo
from PIL import Image

import vitzoo

pytest.importorskip('mmengine')
from mmengine.config import Config  # noqa: E402
from mmengine.registry import DATA_SAMPLERS, DATASETS, MODELS, PARAM_SCHEDULERS  # noqa: E402
from mmengine.runner import Runner  # noqa: E402

from vitzoo.mm import Accuracy, Classifier, ImageFolder, RepeatAugSampler, config_path, setup  # noqa: E402
from vitzoo.mm.shipped import CONFIGS  # noqa: E402

RECIPES = sorted(f'classification/{p.stem}' for p in CONFIGS.glob('classification/*_in1k.py'))
ONE_EACH = sorted({re.search(r'_base_/\w+', config_path(name).read_text())[0]: name for name in RECIPES}.values())  # of each _base_


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
    """Two classes of six images each, of sizes that no crop has; laid out as the recipes expect them."""
    root = tmp_path_factory.mktemp('imagenet')
    for i in range(24):
        folder = root / ('train', 'val')[i % 2] / f'class{i // 2 % 2}'
        folder.mkdir(parents=True, exist_ok=True)
        noise = torch.randint(256, (50 + i, 61, 3), dtype=torch.uint8).numpy()
        Image.fromarray(noise).save(folder / f'{i}.png')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('IMAGENET', str(root))
        yield root


@pytest.mark.parametrize('name', RECIPES)
def test_recipe_builds_and_learns(name):
    cfg = setup(config_path(name))
    with torch.device('meta'):
        assert MODELS.build(cfg.model).model.num_classes == 1000

    cfg.model.model_name = zoo.micro_of(cfg.model.model_name)
    model = MODELS.build(cfg.model).train()
    loss = model(torch.randn(2, 3, 64, 64), torch.tensor([0, 999]), mode='loss')['loss']
    assert loss.item() == pytest.approx(math.log(1000), rel=0.2)  # all classes alike, before any step
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize('name', ONE_EACH)
def test_recipe_reads_images(name, imagenet):
    cfg = setup(config_path(name), cfg_options={'model.num_classes': 2})
    for data in cfg.train_dataloader, cfg.val_dataloader:
        dataset = DATASETS.build(data.dataset)
        image, label = dataset[7]
        assert len(dataset) == 12 and image.shape == (3, 224, 224) and label == 1 and dataset.metainfo == dict(classes=['class0', 'class1'])


@pytest.mark.parametrize('name, warm_up, epochs', [('svit_small', 5, 300), ('vz_davit_small', 5, 310), ('stvit_small', 20, 300)])
def test_rates_of_a_recipe(name, warm_up, epochs):
    """From 1e-6 up to 1e-3, down to 1e-5 at epoch 300, and no change after it."""
    cfg, length = Config.fromfile(config_path(f'classification/{name}_in1k')), 10
    assert cfg.train_cfg.max_epochs == epochs
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.optim_wrapper.optimizer.lr)
    schedulers = []
    for scheduler in cfg.param_scheduler:
        options = {'end': epochs, **scheduler, 'optimizer': optimizer, 'epoch_length': length}
        options.pop('convert_to_iter_based')
        schedulers.append(PARAM_SCHEDULERS.get(options.pop('type')).build_iter_from_epoch(**options))
    rates = []
    for _ in range(epochs * length):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()  # mmengine warns otherwise
        for scheduler in schedulers:
            scheduler.step()
    top = warm_up * length
    assert rates[0] == pytest.approx(1e-6) and max(rates) == pytest.approx(1e-3) == pytest.approx(rates[top - 1])
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[300 * length - 1] == pytest.approx(rates[-1], abs=1e-8) == pytest.approx(1e-5, rel=1e-3)


def test_recipe_trains_evaluates_and_resumes_with_averaged_weights(imagenet, tmp_path):
    """Two epochs of a recipe made small, and the second again from the file of the first."""
    def train(work_dir, **options):
        runner = Runner.from_cfg(setup(config_path('classification/svit_small_in1k'), work_dir=work_dir, cfg_options={
            'experiment_name': work_dir.name, 'model.model_name': 'svit_micro', 'model.num_classes': 2, 'train_cfg.max_epochs': 2,
            'train_dataloader.batch_size': 4, 'train_dataloader.num_workers': 0, 'val_dataloader.num_workers': 0,
            'train_dataloader.dataset.input_size': 48, 'val_dataloader.dataset.input_size': 48, 'custom_hooks.2.momentum': 0.2,
            'param_scheduler.0.end': 1, 'param_scheduler.1.begin': 0, **options}))
        runner.train()
        return runner, torch.load(work_dir / 'epoch_2.pth', weights_only=True)

    whole, saved = train(tmp_path / 'whole')
    assert whole.iter == 6
    trained = whole.model.state_dict()
    # mmengine puts the averaged weights where everyone looks for weights, the trained ones beside them
    differs = [name for name, value in saved['state_dict'].items() if not torch.equal(value, trained[name])]
    assert any('running_mean' in name for name in differs) and any('fc1.weight' in name for name in differs)
    assert all(torch.equal(value, saved['ema_state_dict'][f'module.{name}']) for name, value in trained.items())
    model = timm.create_model('svit_micro', num_classes=2).eval()
    vitzoo.load_checkpoint(model, tmp_path / 'whole' / 'epoch_2.pth', use_ema=True)
    assert all(torch.equal(value, saved['state_dict'][f'model.{name}']) for name, value in model.state_dict().items())

    with torch.inference_mode():
        hits = [p == t for images, labels in whole.val_dataloader for p, t in zip(model(images).argmax(1), labels, strict=True)]
    assert whole.message_hub.get_scalar('val/top1').current() == pytest.approx(100 * sum(hits) / len(hits))

    resumed, again = train(tmp_path / 'resumed', resume=True, load_from=str(tmp_path / 'whole' / 'epoch_1.pth'))
    torch.testing.assert_close(again['state_dict'], saved['state_dict'], rtol=0, atol=0)
    torch.testing.assert_close(again['ema_state_dict'], saved['ema_state_dict'], rtol=0, atol=0)


IMAGES, LABELS = torch.rand(4, 3, 48, 48), torch.tensor([0, 3, 3, 9])


def loss_of(model, images=IMAGES):
    return model(images.clone(), LABELS, mode='loss')['loss']


@pytest.mark.parametrize('loss, expected', [
    (dict(type='vitzoo.LabelSmoothingCrossEntropy', smoothing=0.1), dict(label_smoothing=0.1)),
    (dict(type='vitzoo.BinaryCrossEntropy', smoothing=0.1), None),
])
def test_loss_of_timm(loss, expected):
    model = Classifier('svit_micro', num_classes=10, loss=loss).eval()
    logits = model(IMAGES)
    if expected is None:
        target = torch.full((4, 10), 0.1 / 10).scatter(1, LABELS[:, None], 0.9 + 0.1 / 10)
        wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
    else:
        wanted = torch.nn.functional.cross_entropy(logits, LABELS, **expected)
    torch.testing.assert_close(loss_of(model), wanted)


def test_mixup_is_of_training_alone():
    model = Classifier('svit_micro', num_classes=10, mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0), label_smoothing=0.1)
    seen = []
    model.model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    np.random.seed(0)
    loss_of(model.train())
    loss_of(model.eval())
    mixed, plain = seen
    assert torch.equal(plain, IMAGES) and not torch.equal(mixed, IMAGES)
    torch.testing.assert_close(loss_of(model), torch.nn.functional.cross_entropy(model(IMAGES), LABELS))
    with pytest.raises(ValueError, match='even batch_size'):
        model.train()(IMAGES[:3], LABELS[:3], mode='loss')


def test_each_head_of_lookupvit_has_its_loss():
    model = Classifier('lookupvit_micro', num_classes=10, separate_logits=True).train()
    compressed, lookup = model(IMAGES)
    wanted = [torch.nn.functional.cross_entropy(logits, LABELS) for logits in (compressed, lookup)]
    torch.testing.assert_close(loss_of(model), sum(wanted) / 2)
    assert isinstance(model.eval()(IMAGES, LABELS, mode='predict')[0]['predictions'], list)


def test_checkpointing_changes_no_gradient():
    def gradients(with_cp):
        torch.manual_seed(0)
        model = Classifier('svit_micro', num_classes=10, with_cp=with_cp, drop_path_rate=0.2).train()
        torch.manual_seed(1)
        loss_of(model).backward()
        return {name: p.grad for name, p in model.named_parameters()}

    torch.testing.assert_close(gradients(True), gradients(False), rtol=0, atol=0)


@pytest.mark.parametrize('kwargs, message', [
    (dict(separate_logits=True), 'separate_logits=False'),
    (dict(loss=dict(type='vitzoo.BinaryCrossEntropy'), label_smoothing=0.1), 'its own smoothing'),
])
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Classifier('svit_micro', **kwargs)


def test_models_without_checkpointing_are_refused(monkeypatch):
    monkeypatch.setattr('vitzoo.models.svit.SViT.set_grad_checkpointing', lambda self, enable: (_ for _ in ()).throw(AttributeError))
    with pytest.raises(ValueError, match='with_cp=False'):
        Classifier('svit_micro', with_cp=True)


def test_accuracy():
    metric = Accuracy()
    metric.process(None, [dict(label=t, predictions=[4, 2, 0, 1, 3]) for t in (4, 4, 3, 7)])
    assert metric.evaluate(4) == dict(top1=50, top5=75)


def test_predictions_are_the_best_classes():
    model = Classifier('svit_micro', num_classes=3).eval()
    for image, prediction in zip(IMAGES, model(IMAGES, LABELS, mode='predict'), strict=True):
        assert prediction['predictions'] == model(image[None])[0].argsort(descending=True).tolist()


def test_missing_folder_is_explained(tmp_path):
    with pytest.raises(ValueError, match='CLASS/IMAGE.*IMAGENET'):
        ImageFolder(str(tmp_path / 'nothing'), 224)


def test_repeated_augmentation():
    sampler = DATA_SAMPLERS.build(dict(type='vitzoo.RepeatAugSampler', num_repeats=3, seed=1), default_args=dict(dataset=range(30)))
    order = list(sampler)
    assert len(order) == len(sampler) == 30 and [order[i] for i in (0, 1, 2)] == [order[0]] * 3 and len(set(order)) == 10
    assert list(sampler) == order
    sampler.set_epoch(1)
    assert list(sampler) != order != list(RepeatAugSampler(range(30), seed=2))


def test_weights_start_as_asked():
    torch.manual_seed(0)
    model = Classifier('stvit_micro', num_classes=10, init_cfg=dict(type='Xavier', layer='Linear', distribution='uniform'))
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.init_weights()
    assert {name for name, p in model.named_parameters() if not torch.equal(p, before[name])} == {
        f'{name}.weight' for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    weight = model.model.stages[0].blocks[0].attn.qkv.weight  # (96, 32)
    assert weight.abs().max().item() == pytest.approx((6 / 128) ** 0.5, rel=0.01)
    started = weight.clone()
    model.init_weights()  # the Runner asks again when it resumes
    assert torch.equal(weight, started)
