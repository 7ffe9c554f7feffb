"""The table of docs/clients.md: each row fails as it says, and each failure that is known has its row."""
import re

import clients_page as page
import pytest
import timm
import torch
import zoo

import vitzoo

COLUMNAR = [name for name in zoo.MICRO if zoo.is_columnar(name)]
HIERARCHICAL = [name for name in zoo.MICRO if name not in COLUMNAR]


def image(*size):
    return torch.randn(1, 3, *size)


def smp(architecture, size=(128, 160)):
    def attempt(name):
        library = pytest.importorskip('segmentation_models_pytorch')
        library.create_model(architecture, f'tu-{name}', encoder_weights=None)(image(*size))
    return attempt


def smp_encoder(stride):
    def attempt(name):
        library = pytest.importorskip('segmentation_models_pytorch')
        library.encoders.get_encoder(f'tu-{name}', output_stride=stride)
    return attempt


def dense_output_stride(name):
    vitzoo.DenseBackbone(name, output_stride=16)


def rt_detr(size, last=3):
    def attempt(name):
        pytest.importorskip('transformers')
        from transformers import RTDetrConfig, RTDetrForObjectDetection, TimmBackboneConfig
        levels = [*range(len(timm.create_model(name, features_only=True).feature_info.info))][-last:]
        config = TimmBackboneConfig(backbone=name, out_indices=levels)
        channels = timm.create_model(name, features_only=True, out_indices=levels).feature_info.channels()
        RTDetrForObjectDetection(RTDetrConfig(
            backbone_config=config, encoder_in_channels=channels, decoder_in_channels=[32] * 3, encoder_hidden_dim=32, d_model=32,
            encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=10, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2)).eval()(image(*size))
    return attempt


def timm_wrapper(name, tmp_path):
    transformers = pytest.importorskip('transformers')
    timm.models.save_for_hf(timm.create_model(name), tmp_path, safe_serialization=True)
    transformers.AutoModelForImageClassification.from_pretrained(tmp_path)


def output_attentions(name):
    transformers = pytest.importorskip('transformers')
    backbone = transformers.AutoBackbone.from_config(transformers.TimmBackboneConfig(backbone=name))
    backbone(image(128, 160), output_attentions=True)


def hidden_states(name):
    transformers = pytest.importorskip('transformers')
    backbone = transformers.AutoBackbone.from_config(transformers.TimmBackboneConfig(backbone=name, out_indices=[2, 3]))
    backbone(image(128, 160), output_hidden_states=True)


def torchvision_extractor(name):
    pytest.importorskip('torchvision')
    from torchvision.models.feature_extraction import create_feature_extractor
    model = timm.create_model(name)
    create_feature_extractor(model, [model.feature_info[-1]['module']])


def torchvision_fpn(name):
    pytest.importorskip('torchvision')
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    model = timm.create_model(name, features_only=True).model
    names = {f'{i}': f'{i}' for i in range(4)}
    BackboneWithFPN(model.stages, names, [level['num_chs'] for level in model.feature_info], 32)(model.stem(image(128, 160)))


def cam_of_a_block(name):
    pytest.importorskip('pytorch_grad_cam')
    from pytorch_grad_cam import GradCAM
    model = zoo.build(name)
    GradCAM(model, [model.blocks[-1]], reshape_transform=lambda tokens: tokens.permute(0, 2, 1))(image(128, 160), targets=None)


def cam_without_transform(name):
    pytest.importorskip('pytorch_grad_cam')
    from pytorch_grad_cam import GradCAM
    model = zoo.build(name)
    GradCAM(model, [model.blocks[-1]])(image(128, 160), targets=None)


# what is tried, in the table's words -> (the models, what to do with one)
ATTEMPTS = {
    '`timm.create_model(NAME, output_stride=16)`, `DenseBackbone` too': (zoo.NAMES, lambda name: timm.create_model(name, output_stride=16)),
    'smp: `DeepLabV3`, `DeepLabV3Plus` and `PAN` over hierarchical models': (
        [name for name in HIERARCHICAL if name != 'dualtoken_vit_micro'], smp('DeepLabV3')),
    'smp: `tu-` encoders of columnar models, but for `DPT`, and of DualToken-ViT': ([*COLUMNAR, 'dualtoken_vit_micro'], smp('Unet')),
    'smp: sizes that 32 does not divide, in all decoders but `Unet`': (['svit_micro', 'rmt_micro'], smp('FPN', (131, 167))),
    'transformers: RT-DETR over a columnar model by `TimmBackbone`': (COLUMNAR, rt_detr((128, 160))),
    'transformers: RT-DETR at sizes that 32 does not divide': (['svit_micro', 'rmt_micro'], rt_detr((131, 167))),
    'transformers: `output_attentions=True`': (['svit_micro'], output_attentions),
    'transformers: `output_hidden_states=True` of a `TimmBackbone` that leaves maps out': (['svit_micro', 'test_vit'], hidden_states),
    'transformers: `AutoModelForImageClassification` on what `save_for_hf` of timm 1.0.31 wrote': (
        ['svit_micro', 'resnet10t'], timm_wrapper),
    '`torch.fx.symbolic_trace(model)`': (zoo.MICRO, lambda name: torch.fx.symbolic_trace(timm.create_model(name))),
    "torchvision: `create_feature_extractor` without the recipe's `tracer_kwargs`": (zoo.MICRO, torchvision_extractor),
    'torchvision: `BackboneWithFPN` over the stages': (['svit_micro', 'vz_davit_micro'], torchvision_fpn),
    '`torch.jit.script(model)`': (zoo.MICRO, lambda name: torch.jit.script(timm.create_model(name))),
    'timm: `features_only=True` of a columnar model with `feature_cls="hook"` or `"fx"`': (
        COLUMNAR, lambda name: timm.create_model(name, features_only=True, feature_cls='fx')),
    "`pretrained=True` of models without such weights, timm's `onnx_export.py` without `--checkpoint`": (
        zoo.MICRO, lambda name: timm.create_model(name, pretrained=True)),
    'pytorch-grad-cam: a block of LookupViT as the target layer': (['lookupvit_micro'], cam_of_a_block),
    'pytorch-grad-cam: a block of STViT-DeiT without a reshape transform': (['stvit_deit_micro'], cam_without_transform),
}


def test_every_row_is_tried_and_every_attempt_has_a_row():
    assert set(page.refused()) == set(ATTEMPTS)


@pytest.mark.parametrize(('what', 'name'), [(what, name) for what, (names, _) in ATTEMPTS.items() for name in names])
def test_fails_as_the_table_says(what, name, tmp_path):
    attempt = ATTEMPTS[what][1]
    arguments = (name, tmp_path) if attempt is timm_wrapper else (name,)
    with pytest.raises(Exception, match=re.escape(page.refused()[what])):  # noqa: B017  (theirs are of many classes)
        attempt(*arguments)


@pytest.mark.parametrize('attempt', [smp('DeepLabV3Plus'), smp('PAN'), smp_encoder(8), dense_output_stride])
@pytest.mark.parametrize('name', ['svit_micro', 'cas_vit_micro'])
def test_other_doors_refuse_an_output_stride_too(name, attempt):
    with pytest.raises(ValueError, match='UPerNet.* has its own strides'):
        attempt(name)
