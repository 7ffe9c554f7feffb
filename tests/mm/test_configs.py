import copy
import functools
import importlib.util
import json
import re
import runpy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import timm
import torch
import yaml
import zoo

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
from mmengine.config import Config  # noqa: E402
from mmengine.config import utils as config_utils  # noqa: E402
from mmengine.hub import get_config  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402
from samples import SIZE, batch, build, total  # noqa: E402

from vitzoo.dense import DenseBackbone  # noqa: E402
from vitzoo.mm import config_path, set_backbone, setup  # noqa: E402
from vitzoo.mm.shipped import CONFIGS  # noqa: E402

NAMES = sorted(p.relative_to(CONFIGS).with_suffix('').as_posix() for p in CONFIGS.glob('[!_]*/*.py'))
ZOO = [name for name in NAMES if name.endswith(('_coco', '_ade20k'))]
ENTRIES = [entry for file in sorted(CONFIGS.glob('metafiles/*.yml')) for entry in yaml.safe_load(file.read_text())['Models']]
# Of each family and of each head the first config in the metafiles, whose models are the smallest, is built in every run; the rest in the
# slow one, those that differ from a smaller one in the numbers of the backbone alone with the micro model of its family.
FIRST = {kind: e['Config'].removeprefix('configs/').removesuffix('.py')
         for e in reversed(ENTRIES) for kind in (e['In Collection'], e['Metadata']['Head'], (e['In Collection'], e['Metadata']['Head']))}
HEADS = {  # by the first word of a config's name: the name in metafiles, the model, the head
    'retinanet': ('RetinaNet', 'RetinaNet', 'RetinaHead'),
    'mask-rcnn': ('Mask R-CNN', 'MaskRCNN', 'StandardRoIHead'),
    'cascade-mask-rcnn': ('Cascade Mask R-CNN', 'CascadeRCNN', 'CascadeRoIHead'),
    'dino': ('DINO', 'DINO', 'DINOHead'),
    'atss': ('ATSS', 'ATSS', 'ATSSHead'),
    'fcos': ('FCOS', 'FCOS', 'FCOSHead'),
    'deformable-detr': ('Deformable DETR', 'DeformableDETR', 'DeformableDETRHead'),
    'upernet': ('UPerNet', 'EncoderDecoder', 'UPerHead'),
    'fpn': ('Semantic FPN', 'EncoderDecoder', 'FPNHead'),
    'segformer': ('SegFormer', 'EncoderDecoder', 'SegformerHead'),
    'mask2former': ('Mask2Former', 'EncoderDecoder', 'Mask2FormerHead'),
    'segmenter': ('Segmenter', 'EncoderDecoder', 'SegmenterMaskTransformerHead'),
    'linear': ('Linear', 'EncoderDecoder', 'FCNHead'),
}
# a recipe without a backbone for each head, by its word, and what to put into it
RECIPES = {path.stem.split('_')[0]: f'_base_/{path.stem}' for path in sorted(CONFIGS.glob('_base_/*.py'), reverse=True)
           if path.stem.endswith(('_coco', '_ade20k'))}
BACKBONES = sorted(CONFIGS.glob('_base_/backbones/*.py'))
SCHEDULES = {'1x': '12 epochs', '12e': '12 epochs', '3x': '36 epochs', '50e': '50 epochs', '40k': '40000 iterations',
             '80k': '80000 iterations', '160k': '160000 iterations'}


def head_of(name):
    return name.split('/')[1].split('_')[0]


LOAD = functools.cache(config_utils.load)


@functools.cache
def _parsed(name):
    with pytest.MonkeyPatch.context() as patch:  # mmengine reads a hundred metafiles for each base from mmdet or mmseg
        patch.setattr(config_utils, 'load', LOAD)
        return setup(config_path(name))


def parse(name):
    return copy.deepcopy(_parsed(name))


def lighten(cfg):
    """Fewer samples for the losses: the same parameters in the same graph."""
    train_cfg = cfg.model.get('train_cfg') or {}
    if 'rpn_proposal' in train_cfg:
        train_cfg.rpn_proposal.max_per_img = 20
        for stage in train_cfg.rcnn if isinstance(train_cfg.rcnn, list) else [train_cfg.rcnn]:
            stage.sampler.num = 8
    if cfg.model.type == 'DINO':
        cfg.model.num_queries = min(100, cfg.model.num_queries)  # no more than positions
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = SIZE
        if 'num_points' in (cfg.model.decode_head.get('train_cfg') or {}):
            cfg.model.decode_head.train_cfg.num_points = 100


def reached(loss):
    """Ids of the parameters in the graph of `loss`. DistributedDataParallel waits for the gradient of every other one in vain."""
    found, seen, queue = set(), set(), [loss.grad_fn]
    while queue:
        node = queue.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found.add(id(getattr(node, 'variable', None)))
            queue += [function for function, _ in node.next_functions]
    return found


def slow_unless_first(names):
    quick = {name for kind, name in FIRST.items() if isinstance(kind, str)}
    return [pytest.param(name, marks=() if name in quick or name.endswith('_digits') else pytest.mark.slow) for name in names]


@pytest.mark.parametrize('name', [pytest.param(name, marks=() if name.endswith('svit_micro_digits') else pytest.mark.slow)
                                  for name in NAMES if not re.search('_in1k|/finetune_', name)])  # those: test_classification, _finetune
def test_config_has_a_loss_at_an_odd_size_with_every_parameter(name):
    torch.manual_seed(0)
    cfg = parse(name)
    if name in ZOO and name not in FIRST.values() and cfg.model.backbone.model_name in zoo.NAMES:
        set_backbone(cfg, zoo.micro_of(cfg.model.backbone.model_name))
    lighten(cfg)
    model = build(cfg).train()
    if hasattr(model, 'level_embed'):
        torch.nn.init.normal_(model.level_embed)  # MMDetection gives it no values before `init_weights`
    data = model.data_preprocessor(batch(cfg), training=True)
    loss = total(model(**data, mode='loss') if isinstance(data, dict) else model(*data, mode='loss'))
    assert torch.isfinite(loss) and loss > 0
    used = reached(loss)
    assert [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in used] == []
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    assert sorted(id(p) for group in groups for p in group['params']) == sorted(id(p) for p in model.parameters() if p.requires_grad)

    if cfg.default_scope == 'mmengine':
        return
    assert isinstance(model.backbone, DenseBackbone)
    strides = list(model.backbone.strides)
    priors = getattr(model, 'rpn_head', None) or getattr(model, 'bbox_head', None) or getattr(model, 'decode_head', None)
    if hasattr(priors, 'prior_generator'):
        assert [stride for stride, _ in priors.prior_generator.strides][:len(strides)] == strides
    else:  # Mask2Former's pixel decoder has points
        decoder = getattr(priors, 'pixel_decoder', None)
        assert decoder is None or decoder.strides == strides


CHANNELS = {}


def backbone_channels(**options):
    """Of the maps of a `vitzoo.Backbone` with these options, built once for each model."""
    passive = {'type', 'init_cfg', 'drop_path_rate', 'norm_eval', 'frozen_stages', 'reduction'}
    options = {name: value for name, value in options.items() if name not in passive}
    key = repr(sorted(options.items()))
    if key not in CHANNELS:
        with torch.device('meta'):
            CHANNELS[key] = list(DenseBackbone(**options).out_channels)
    return CHANNELS[key]


@pytest.mark.parametrize('name', slow_unless_first([n for n in NAMES if not n.startswith('classification')]))
def test_config_fits_its_backbone_and_the_tools(name):
    cfg = parse(name)
    assert cfg.test_pipeline and cfg.default_scope in ('mmdet', 'mmseg')
    assert cfg.custom_imports.imports[0] == 'vitzoo.mm'  # before anything that imports mmcv
    assert cfg.model.get('pretrained') is None  # mmseg hands it to the backbone
    backbone = cfg.model.backbone
    assert backbone.type == 'vitzoo.Backbone' and not backbone.get('pretrained') and not backbone.get('with_cp')
    check_channels(cfg, backbone_channels(**backbone))


def check_channels(cfg, channels):
    """Those that neck or heads expect of the backbone."""
    expected = (cfg.model.get('neck') or cfg.model.decode_head).in_channels
    assert ([expected] if isinstance(expected, int) else list(expected)) == channels
    auxiliary = cfg.model.get('auxiliary_head')
    assert not auxiliary or auxiliary.in_channels == channels[auxiliary.in_index]


@pytest.mark.parametrize('file', zoo.slow_if(lambda file: not file.stem.endswith('_micro'), BACKBONES), ids=lambda file: file.stem)
def test_backbone_file_fits_each_head(file, monkeypatch):
    """Its options are the model's, its channels are true, and neck and heads are told of them."""
    built = {}

    def build_once(**options):
        key = repr(sorted(options.items()))
        if key not in built:
            built[key] = DenseBackbone(**options)
        return built[key]

    monkeypatch.setattr('vitzoo.mm.config.DenseBackbone', build_once)
    channels = Config.fromfile(file).channels
    for recipe in RECIPES.values():
        cfg = set_backbone(parse(recipe), file)
        check_channels(cfg, [channels[i] for i in cfg.model.backbone.out_indices])
    assert {backbone.out_channels for backbone in built.values()} == {tuple(channels), tuple(channels[1:]), (channels[2],)}


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('file', zoo.slow_if(lambda file: file.stem != 'svit_small', BACKBONES), ids=lambda file: file.stem)
def test_backbone_file_is_built_under_each_head(file, head):
    with nullcontext() if head == 'segmenter' else torch.device('meta'):  # MMSegmentation asks tensors for numbers there
        model = build(set_backbone(parse(RECIPES[head]), file))
    assert isinstance(model.backbone, DenseBackbone)


@pytest.mark.parametrize('file', BACKBONES, ids=lambda file: file.stem)
def test_backbone_file_goes_into_a_classifier(file):
    content = Config.fromfile(file)
    model = setup(config_path('classification/svit_micro_digits'), backbone=file).model
    own = {key: model.pop(key) for key in ('type', 'num_classes', 'label_smoothing', 'init_cfg')}
    assert own['num_classes'] == 10 and model == content.get('classification', dict(model_name=content.detection.model_name))


@pytest.mark.parametrize('name', ZOO)
def test_config_is_its_recipe_with_its_backbone_file(name, monkeypatch):
    """Which is why a family needs no configs but for what was published."""
    monkeypatch.setattr('vitzoo.mm.config.DenseBackbone', lambda **options: SimpleNamespace(out_channels=backbone_channels(**options)))
    expected, path = parse(name).model, config_path(name)
    model = '_'.join(path.stem.split('_')[1:-2])
    while '../_base_/' not in (text := path.read_text()):  # a variant of another config
        path = path.parent / re.search(r"'\./(.+)'", text)[1]
    recipe = re.search(r'_base_/[\w-]+', text)[0]
    found = setup(parse(recipe), backbone=CONFIGS / '_base_' / 'backbones' / f'{model}.py').model
    expected.backbone.setdefault('out_indices', (0, 1, 2, 3))
    if 'drop_path_rate' in text:  # as published for this head
        found.backbone.drop_path_rate = expected.backbone.drop_path_rate
    assert found == expected


def test_backbone_files_that_are_none(tmp_path):
    cfg = parse(RECIPES['retinanet'])
    with pytest.raises(ValueError, match='missing.py is no file'):
        set_backbone(cfg, tmp_path / 'missing.py')
    for text in 'channels = [1, 2, 3, 4]', 'detection = dict(drop_path_rate=0.1)':
        (tmp_path / 'x.py').write_text(text)
        with pytest.raises(ValueError, match='describes no backbone'):
            set_backbone(cfg, tmp_path / 'x.py')


def test_backbone_file_names_the_folder():
    file = CONFIGS / '_base_' / 'backbones' / 'biformer_tiny.py'
    cfg = setup(config_path('detection/retinanet_svit_micro_digits'), backbone=str(file), cfg_options={'model.backbone.n_win': 4})
    assert cfg.work_dir.endswith('retinanet_svit_micro_digits-biformer_tiny') and cfg.model.backbone.n_win == 4
    assert set_backbone(cfg, file, norm_eval=False).model.backbone.norm_eval is False


def all_values(cfg, key):
    for name, value in cfg.items() if isinstance(cfg, dict) else enumerate(cfg) if isinstance(cfg, list) else ():
        yield from [value] if name == key else all_values(value, key)


@pytest.mark.parametrize('name', ZOO)
def test_recipe(name):
    cfg, (kind, _, file) = parse(name), name.rpartition('/')
    head, schedule, dataset = HEADS[head_of(name)], file.split('_')[-2], file.split('_')[-1]
    part = cfg.model.get('roi_head') or cfg.model.get('bbox_head') or cfg.model.decode_head
    assert (cfg.model.type, part.type) == head[1:]
    assert f'_{cfg.model.backbone.model_name}_' in file

    length = cfg.train_cfg.max_epochs if kind == 'detection' else cfg.train_cfg.max_iters
    assert SCHEDULES[schedule] == f'{length} {"epochs" if kind == "detection" else "iterations"}'
    *warm_up, main = cfg.param_scheduler
    assert main.end == length and all(milestone < length for milestone in main.get('milestones', []))
    assert all(scheduler.type == 'LinearLR' and not scheduler.by_epoch for scheduler in warm_up)
    optimizer = cfg.optim_wrapper.optimizer
    assert cfg.optim_wrapper.type == 'OptimWrapper' and optimizer.type == 'AdamW' and optimizer.lr <= 2e-4
    assert set(optimizer) <= {'type', 'lr', 'betas', 'eps', 'weight_decay'}  # nothing left of SGD

    assert set(all_values(cfg.model, 'num_classes')) == {{'coco': 80, 'ade20k': 150}[dataset]}
    setup(cfg, auto_scale_lr=True)  # the batch of the recipe is known, and its lowest rate can follow


def published_files(model_name):
    """Where the published weights of a model lie, as its pretrained configs have it."""
    shared = timm.get_pretrained_cfg(model_name)
    tags = [timm.get_pretrained_cfg(tag) for tag in timm.list_pretrained(f'{model_name}.*')]
    return [f'checkpoints/{note.removeprefix("file: ")}' for note in shared.notes or ()] + [
        f'hf-hub:{tag.hf_hub_id}' + (f'/{tag.hf_hub_filename}' if tag.hf_hub_filename else '') for tag in tags]


@pytest.mark.parametrize('name', ZOO)
def test_start(name):
    """A config starts from the weights published for its model, if there are any, and shows it pixels as they were in training."""
    model = parse(name).model
    files, start = published_files(model.backbone.model_name), model.backbone.get('init_cfg')
    assert start.checkpoint in files if files else start is None
    pixels = timm.get_pretrained_cfg(model.backbone.model_name)
    assert model.data_preprocessor.mean == pytest.approx([255 * x for x in pixels.mean])
    assert model.data_preprocessor.std == pytest.approx([255 * x for x in pixels.std]) and model.data_preprocessor.bgr_to_rgb


def test_metafiles_list_each_config_once():
    assert sorted(entry['Config'] for entry in ENTRIES) == [f'configs/{name}.py' for name in ZOO]
    for entry in ENTRIES:
        name = entry['Config'].removeprefix('configs/').removesuffix('.py')
        assert entry['Name'] == name.split('/')[1]
        assert entry['Metadata'] == dict(Backbone=parse(name).model.backbone.model_name, Head=HEADS[head_of(name)][0],
                                         Schedule=SCHEDULES[name.split('_')[-2]])


def test_page_has_the_table_of_the_metafiles():
    tool = runpy.run_path(str(CONFIGS.parent / 'tools' / 'config_table.py'))
    assert tool['PAGE'].read_text() == tool['page'](), 'run python tools/config_table.py'


@pytest.mark.parametrize('file', sorted(CONFIGS.glob('metafiles/*.yml')), ids=lambda file: file.stem)
def test_published_numbers_carry_a_source(file):
    content = yaml.safe_load(file.read_text())
    metrics = {'Object Detection': 'box AP', 'Instance Segmentation': 'mask AP', 'Semantic Segmentation': 'mIoU'}
    assert [c['Name'] for c in content['Collections']] == list({entry['In Collection'] for entry in content['Models']})
    for entry in content['Models']:
        assert ('Results' in entry) == ('Source' in entry) and entry.get('Source', 'https://').startswith('https://')
        for result in entry.get('Results', []):
            assert list(result['Metrics']) == [metrics[result['Task']]]
            assert result['Dataset'].lower() == entry['Name'].split('_')[-1] and all(30 < x < 60 for x in result['Metrics'].values())


@pytest.mark.parametrize('name', ['detection/mask-rcnn_svit_micro_digits', 'detection/retinanet_svit_micro_digits',
                                  'segmentation/fpn_svit_micro_digits', 'classification/svit_micro_digits'])
def test_digits_are_validated_and_tested_on_parts_of_their_own(name):
    """The two differ in the part alone."""
    cfg = parse(name)
    for what in 'dataloader', 'evaluator':
        val, test = (json.dumps(cfg[f'{split}_{what}'].to_dict(), sort_keys=True) for split in ('val', 'test'))
        assert re.sub(r'\bval(?=["/])|(?<=det_)val', 'test', val) == test and 'train' not in test
        assert (val != test) == (what == 'dataloader' or 'detection' in name)


def test_digit_classes():
    from vitzoo.datasets import digit_scenes
    detection = parse('detection/mask-rcnn_svit_micro_digits').metainfo
    segmentation = parse('segmentation/fpn_svit_micro_digits').metainfo
    assert tuple(detection.classes) == digit_scenes.CLASSES
    assert tuple(segmentation.classes) == digit_scenes.SEG_CLASSES
    assert segmentation.palette == digit_scenes.SEG_PALETTE


@pytest.mark.parametrize('name', [
    'detection/retinanet_svit_micro_digits', 'segmentation/fpn_svit_micro_digits', 'segmentation/segformer_svit_small_160k_ade20k'])
def test_dump_reloads_and_builds(name, tmp_path):
    cfg = setup(config_path(name))
    cfg.dump(tmp_path / 'dump.py')
    again = Config.fromfile(tmp_path / 'dump.py')
    assert again.model == cfg.model and again.train_dataloader == cfg.train_dataloader
    assert build(again).backbone.out_channels == build(cfg).backbone.out_channels


def test_config_of_a_user_inherits_from_ours(tmp_path):
    (tmp_path / 'mine.py').write_text(
        f"_base_ = [{str(config_path('detection/retinanet_svit_micro_digits'))!r}]\nmodel = dict(backbone=dict(drop_path_rate=0.2))\n")
    cfg = setup(tmp_path / 'mine.py', cfg_options={'train_cfg.max_iters': 7, 'model.backbone.with_cp': True}, seed=3)
    assert (cfg.model.backbone.drop_path_rate, cfg.model.backbone.with_cp, cfg.train_cfg.max_iters) == (0.2, True, 7)
    assert cfg.randomness.seed == 3 and cfg.work_dir == 'work_dirs/mine'
    assert setup(tmp_path / 'mine.py', work_dir=tmp_path).work_dir == str(tmp_path)


@pytest.mark.parametrize('name', ['detection/retinanet_svit_micro_digits', 'segmentation/fpn_svit_micro_digits',
                                  'classification/svit_micro_digits'])
def test_config_of_a_user_inherits_by_name(name, tmp_path):
    """`vitzoo::` gives what the path gives: mmengine would have looked up CocoDataset and the like in our registries."""
    (tmp_path / 'mine.py').write_text(f"_base_ = 'vitzoo::{name}.py'\nwork_dir = 'mine'\n")
    ours, mine = Config.fromfile(config_path(name)), Config.fromfile(tmp_path / 'mine.py')
    assert mine.pop('work_dir') == 'mine' and mine.to_dict() == ours.to_dict()
    assert get_config(f'vitzoo::{name}.py').to_dict() == ours.to_dict()


def test_mmengine_reads_all_metafiles():
    index = yaml.safe_load((CONFIGS.parent / 'model-index.yml').read_text())
    assert index['Import'] == [f'configs/metafiles/{file.name}' for file in sorted(CONFIGS.glob('metafiles/*.yml'))]
    for entry in ENTRIES:
        assert (CONFIGS.parent / entry['Config']).is_file()


def test_missing_pkg_resources_is_explained(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *args: None if name == 'pkg_resources' else find_spec(name, *args))
    with pytest.raises(ImportError, match='setuptools<82'):
        setup(config_path('detection/retinanet_svit_micro_digits'))


def test_unknown_config_is_answered_with_names_like_it():
    for wrong in 'mask-rcnn_svit_micro_dig', 'detection/mask-rcnn_svit_mikro_digits':
        with pytest.raises(ValueError, match='did you mean detection/mask-rcnn_svit_micro_digits'):
            config_path(wrong)
    with pytest.raises(ValueError, match='they are in '):
        config_path('nothing like it')
    assert config_path(NAMES[0]) == config_path(NAMES[0] + '.py') == config_path(f'vitzoo::{NAMES[0]}')


def distributed_config():
    return Config(dict(
        model=dict(decode_head=dict(norm_cfg=dict(type='SyncBN', requires_grad=True)), heads=[dict(norm_cfg=dict(type='SyncBN'))]),
        optim_wrapper=dict(type='AmpOptimWrapper', loss_scale='dynamic', optimizer=dict(type='AdamW')),
        model_wrapper_cfg=dict(find_unused_parameters=True),
        sync_bn='torch', env_cfg=dict(cudnn_benchmark=True, dist_cfg=dict(backend='nccl')), work_dir='x'))


def test_cpu_config(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    backends = []
    monkeypatch.setattr(torch.distributed, 'init_process_group', backends.append)
    cfg = setup(distributed_config(), launcher='pytorch')
    assert backends == ['gloo'] == [cfg.env_cfg.dist_cfg.backend] and cfg.env_cfg.cudnn_benchmark
    assert cfg.model.decode_head.norm_cfg == dict(type='BN', requires_grad=True) and cfg.model.heads[0].norm_cfg.type == 'BN'
    assert 'sync_bn' not in cfg  # that of backbones
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=True, device_ids=None)
    assert cfg.optim_wrapper == dict(type='OptimWrapper', optimizer=dict(type='AdamW'))
    with pytest.raises(ValueError, match='slurm'):
        setup(distributed_config(), launcher='slurm')
    alone = setup(distributed_config())
    assert alone.model_wrapper_cfg == dict(find_unused_parameters=True) and alone.optim_wrapper.type == 'OptimWrapper'


def test_gpu_config_is_left_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    cfg, before = setup(distributed_config(), launcher='pytorch'), distributed_config()
    assert all(cfg[key] == before[key] for key in before) and cfg.launcher == 'pytorch'


@functools.cache
def backbones_to_synchronise():
    """The different backbones of all configs whose batch norms mmengine replaces where training is distributed, smallest first."""
    found = {}
    for name in NAMES:
        cfg = _parsed(name)
        model = cfg.model.get('backbone')
        if model is not None and model.get('type') == 'vitzoo.Backbone':
            options = {key: value for key, value in model.items() if key not in ('init_cfg', 'pretrained', 'checkpoint_path', 'with_cp')}
            found.setdefault(repr(sorted(options.items())), options)
    return list(found.values())


@pytest.mark.slow
def test_synchronised_norms_change_nothing():
    """`sync_bn='torch'` as training on several devices does it; on one device `setup` takes it out of a config."""
    from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm
    from mmengine.registry import MODELS
    image = torch.randn(1, 3, 96, 128)
    for options in backbones_to_synchronise():
        model = MODELS.build(copy.deepcopy(options)).eval()
        with torch.no_grad():
            expected = model(image)
            for convert in convert_sync_batchnorm, revert_sync_batchnorm:
                model = convert(model).eval()
                for found, right in zip(model(image), expected, strict=True):
                    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4, msg=f'{options}: another map after {convert.__name__}')
