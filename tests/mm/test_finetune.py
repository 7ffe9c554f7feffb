"""Fine-tuning: the configs of all families, weights that a classifier starts from, and how many classes it has."""
import re
import shutil

import pytest
import timm
import torch
import zoo

import vitzoo

pytest.importorskip('mmengine')
from mmengine.registry import MODELS  # noqa: E402
from mmengine.runner import Runner  # noqa: E402

from vitzoo.mm import Classifier, config_path, set_backbone, setup  # noqa: E402
from vitzoo.mm.classification import init_classifier  # noqa: E402
from vitzoo.mm.config import CONFIGS  # noqa: E402
from vitzoo.mm.optim import LayerDecayConstructor  # noqa: E402

RECIPES = {re.fullmatch('finetune_(.*)', path.stem)[1]: f'classification/{path.stem}'
           for path in sorted(CONFIGS.glob('classification/finetune_*.py'))}
NAME = 'svit_micro'


def test_each_family_has_a_config():
    assert {zoo.family_of(name) for name in RECIPES} == {*zoo.FAMILIES}


@pytest.mark.parametrize('name', RECIPES)
def test_config(name):
    """Starts from what is published for the model or, where nothing is, from what its page names; tests as published; decays by layer."""
    cfg = setup(config_path(RECIPES[name]))
    published = timm.get_pretrained_cfg(name)
    files = [f'checkpoints/{note.removeprefix("file: ")}' for note in published.notes or ()] + [
        f'hf-hub:{published.hf_hub_id}' + (f'/{published.hf_hub_filename}' if published.hf_hub_filename else '')]
    untrained = {'hf-hub:timm/deit_small_patch16_224.fb_in1k', f'work_dirs/{name}_in1k/epoch_300.pth'}
    assert cfg.model.model_name == name and cfg.model.checkpoint_path in (untrained if published.tag == 'untrained' else files)
    assert {cfg[f'{part}_dataloader'].dataset.crop_pct for part in ('val', 'test')} == {published.crop_pct}
    assert published.mean == timm.data.IMAGENET_DEFAULT_MEAN and published.interpolation == 'bicubic'  # what ImageFolder does by itself

    options = {key: value for key, value in cfg.model.items() if key not in ('type', 'checkpoint_path')}
    with torch.device('meta'):
        model = Classifier(**{**options, 'model_name': zoo.micro_of(name)}, num_classes=3)
    wrapper = {key: value for key, value in cfg.optim_wrapper.items() if key not in ('constructor', 'paramwise_cfg')}
    groups = LayerDecayConstructor(wrapper, cfg.optim_wrapper.paramwise_cfg)(model).optimizer.param_groups
    rates = {group['lr'] for group in groups}
    assert max(rates) == cfg.optim_wrapper.optimizer.lr and min(rates) < 0.6 * max(rates)


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    """A file of a model with 7 classes, in the names of timm."""
    file = tmp_path_factory.mktemp('weights') / 'pretrained.pth'
    model = timm.create_model(NAME, num_classes=7)
    torch.save(model.state_dict(), file)
    return model.state_dict(), file


def test_weights_from_a_file(pretrained, monkeypatch):
    state, file = pretrained
    said = []
    monkeypatch.setattr('vitzoo.mm.classification.print_log', lambda text, *_: said.append(text))
    same, other = (Classifier(NAME, num_classes=n, checkpoint_path=file).model.state_dict() for n in (7, 3))
    head = [name for name, value in other.items() if value.shape != state[name].shape]
    assert head == ['head.fc.weight', 'head.fc.bias'] and all(torch.equal(same[name], state[name]) for name in state)
    assert all(torch.equal(other[name], state[name]) for name in state if name not in head)
    assert len(said) == 2 and all(line.startswith(f'{NAME}: ') and str(file) in line and 'loaded' in line for line in said)
    assert 'head.fc.weight' in said[1] and 'head.fc.weight' not in said[0]


@pytest.mark.parametrize('options, words', [
    (dict(checkpoint_path='gone.pth'), "'gone.pth' is not a file"),
    (dict(pretrained=True, checkpoint_path='x.pth'), 'either pretrained=True or checkpoint_path'),
    (dict(pretrained='x.pth'), 'give a file as checkpoint_path'),
])
def test_weights_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        Classifier(NAME, **options)


def test_weights_of_two_places_or_of_another_model_are_refused(pretrained):
    _, file = pretrained
    with pytest.raises(ValueError, match='init_cfg.*checkpoint_path'):
        Classifier(NAME, checkpoint_path=file, init_cfg=dict(type='Xavier', layer='Linear'))
    with pytest.raises(ValueError, match='biformer_micro|BiFormer'):
        Classifier('biformer_micro', checkpoint_path=file)


def options_of(root, file, **more):
    folders = {f'{part}_dataloader.dataset.root': str(root / 'classification' / folder)
               for part, folder in (('train', 'train'), ('val', 'val'), ('test', 'val'))}
    small = {f'{part}_dataloader.{key}': value for part in ('train', 'val', 'test')
             for key, value in (('num_workers', 0), ('dataset.input_size', 48))}
    return {'model.model_name': NAME, 'model.checkpoint_path': str(file), **folders, **small, **more}


def test_trains_with_the_number_of_folders_and_needs_no_first_file_afterwards(digits, pretrained, tmp_path, monkeypatch):
    """The environment variable alone says where pictures are and, by their folders, how many classes there are."""
    _, file = pretrained
    monkeypatch.setenv('IMAGES', str(digits / 'classification'))
    first = tmp_path / 'first.pth'
    shutil.copy(file, first)
    options = options_of(digits, first, **{'train_cfg.max_epochs': 2})
    cfg = setup(config_path(RECIPES['svit_small']), work_dir=tmp_path / 'work', cfg_options=options)
    assert cfg.train_dataloader.dataset.root == f'{digits}/classification/train' and cfg.model.num_classes == 10
    assert setup(config_path(RECIPES['svit_small'])).train_dataloader.dataset.root == f'{digits}/classification/train'
    runner = Runner.from_cfg(cfg)
    head = runner.model.model.head.fc.weight.detach().clone()
    runner.train()
    assert runner.iter == 6 and not torch.equal(head, runner.model.model.head.fc.weight)

    first.unlink()
    best = next((tmp_path / 'work').glob('best_top1_*.pth'))
    monkeypatch.setenv('IMAGES', 'gone')
    for config in cfg, setup(config_path(RECIPES['svit_small']), cfg_options={'model.model_name': NAME}):  # it does not count any folders
        model = init_classifier(config, best)
        assert model.dataset_meta['classes'] == [str(d) for d in range(10)]
    vitzoo.load_checkpoint(timm.create_model(NAME, num_classes=10), best)


@pytest.mark.parametrize('change, words', [
    ({'model.num_classes': 12}, r'model.num_classes=12, and .*train has 10 folders.*--cfg-options model.num_classes=10'),
    ({'val_dataloader.dataset.root': 'detection'}, r'do not have the same folders'),
])
def test_folders_and_number_of_classes_agree(digits, change, words):
    change = {key: str(digits / value) if isinstance(value, str) else value for key, value in change.items()}
    with pytest.raises(ValueError, match=words):
        setup(config_path(RECIPES['svit_small']), cfg_options=options_of(digits, 'x.pth', **change))


def test_weights_of_a_file_do_not_go_into_another_model():
    cfg = set_backbone(setup(config_path(RECIPES['svit_small'])), 'biformer_micro')
    assert cfg.model == dict(type='vitzoo.Classifier', model_name='biformer_micro', label_smoothing=0.1)
    assert MODELS.build(dict(cfg.model, num_classes=2)).model.num_classes == 2
