"""transformers: TimmBackbone in its heads, TimmWrapper, and our pyramid by the recipe of docs/clients.md."""
import clients_page as page
import pytest
import timm
import torch
import zoo
from torch import nn

transformers = pytest.importorskip('transformers')

COLUMNAR = [name for name in zoo.MICRO if zoo.is_columnar(name)]
HIERARCHICAL = [name for name in zoo.MICRO if name not in COLUMNAR]
SIZE = (131, 167)
SIZES = dict(rt_detr=(128, 160))  # it takes multiples of 32 alone, whatever the backbone


def backbone(name, last=4):
    """The config of a model's maps, the last ones of them; columnar models through our pyramid."""
    if name in COLUMNAR:
        return page.recipe('transformers')['PyramidConfig'](model_name=name, levels=list(range(4))[-last:])
    levels = range(len(timm.create_model(name).feature_info))
    return transformers.TimmBackboneConfig(backbone=name, out_indices=[*levels][-last:])


def channels(config):
    return transformers.AutoBackbone.from_config(config).channels


def upernet(name):
    return transformers.UperNetForSemanticSegmentation(transformers.UperNetConfig(
        backbone_config=backbone(name), hidden_size=32, num_labels=5, use_auxiliary_head=False))


def rt_detr(name):
    config = backbone(name, last=3)
    return transformers.RTDetrForObjectDetection(transformers.RTDetrConfig(
        backbone_config=config, encoder_in_channels=channels(config), decoder_in_channels=[32] * 3, encoder_hidden_dim=32, d_model=32,
        num_labels=5, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=10, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, num_denoising=0))


def mask2former(name):
    return transformers.Mask2FormerForUniversalSegmentation(transformers.Mask2FormerConfig(
        backbone_config=backbone(name), feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        dim_feedforward=32, num_queries=10, decoder_layers=2, encoder_layers=1, num_attention_heads=2, num_labels=5))


HEADS = dict(upernet=upernet, rt_detr=rt_detr, mask2former=mask2former)


def labels(head, size):
    if head == 'upernet':
        return dict(labels=torch.randint(5, (2, *size)))
    if head == 'rt_detr':
        return dict(labels=[dict(class_labels=torch.tensor([1, 3]), boxes=torch.tensor([[.4, .4, .2, .2], [.6, .5, .3, .4]]))] * 2)
    return dict(mask_labels=[torch.ones(1, *size)] * 2, class_labels=[torch.tensor([2])] * 2)


def outputs(found):
    return [value for value in (found.get(key) for key in ('logits', 'pred_boxes', 'masks_queries_logits', 'class_queries_logits'))
            if value is not None]


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('name', zoo.MICRO)
def test_heads_train_save_and_load(name, head, tmp_path):
    model, size = HEADS[head](name).train(), SIZES.get(head, SIZE)
    image = torch.randn(2, 3, *size)
    loss = model(image, **labels(head, size)).loss
    loss.backward()
    idle = [path for path, p in model.named_parameters() if p.requires_grad and p.grad is None and 'backbone' in path]
    assert torch.isfinite(loss) and idle == []

    model.eval().save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        for found, expected in zip(outputs(again(image)), outputs(model(image)), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', HIERARCHICAL)
def test_frozen_norms_compute_what_the_norms_did(name):
    """RT-DETR puts its own in the place of every BatchNorm2d; TimmBackbone has an option for timm's."""
    def maps(model):
        model.load_state_dict(trained)
        with torch.no_grad():
            return model.eval()(image)

    last = [*range(len(timm.create_model(name).feature_info))]
    trained = zoo.build(name, features_only=True).state_dict()
    image = torch.randn(1, 3, *SIZE)
    expected = maps(timm.create_model(name, features_only=True))

    config = transformers.TimmBackboneConfig(backbone=name, out_indices=last, freeze_batch_norm_2d=True)
    frozen = transformers.AutoBackbone.from_config(config).eval()
    missing = frozen._backbone.load_state_dict(trained, strict=False).missing_keys
    assert missing == []
    with torch.no_grad():
        found = frozen(image).feature_maps
    from transformers.models.rt_detr.modeling_rt_detr import replace_batch_norm
    replaced = timm.create_model(name, features_only=True).eval()
    replaced.load_state_dict(trained)
    replace_batch_norm(replaced)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in replaced.modules())
    with torch.no_grad():
        for a, b, c in zip(found, replaced(image), expected, strict=True):
            torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(b, c, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', zoo.MICRO)
def test_wrapper_classifies(name, tmp_path):
    """TimmWrapper reads what timm's `save_for_hf` writes, as the page says."""
    model = zoo.build(name, num_classes=3)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    del config.model_args['num_classes']
    wrapped = transformers.AutoModelForImageClassification.from_pretrained(tmp_path, config=config).eval()
    image = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(wrapped(image).logits, model(image), rtol=0, atol=0)
        hidden = wrapped(image, output_hidden_states=True).hidden_states
    assert len(hidden) == len(model.feature_info)
    wrapped.save_pretrained(tmp_path / 'again')
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / 'again').eval()
    with torch.no_grad():
        torch.testing.assert_close(again(image).logits, model(image), rtol=0, atol=0)


@pytest.mark.parametrize('name', zoo.MICRO)
def test_gradient_checkpointing(name):
    config = transformers.TimmWrapperConfig(architecture=name, num_classes=3)
    model = transformers.TimmWrapperForImageClassification(config)
    model.gradient_checkpointing_enable()
    image = torch.randn(2, 3, *SIZE)
    assert model.supports_gradient_checkpointing
    model.train()(image, labels=torch.tensor([0, 1])).loss.backward()
    assert [path for path, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('name', zoo.MICRO)
def test_trainer(name, tmp_path, monkeypatch):
    pytest.importorskip('accelerate')
    monkeypatch.setattr('transformers.trainer.is_datasets_available', lambda: False)  # it takes tests/datasets for the library
    model = transformers.TimmWrapperForImageClassification(transformers.TimmWrapperConfig(architecture=name, num_classes=2))
    data = [dict(pixel_values=torch.randn(3, 64, 64), labels=i % 2) for i in range(4)]
    args = transformers.TrainingArguments(tmp_path, max_steps=2, per_device_train_batch_size=2, use_cpu=True, report_to='none',
                                          disable_tqdm=True, save_steps=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    transformers.Trainer(model, args, train_dataset=data).train()
    again = transformers.TimmWrapperForImageClassification.from_pretrained(tmp_path / 'checkpoint-2').eval()
    saved = again.state_dict()
    assert sum(not torch.equal(saved[key], value) for key, value in before.items()) > len(before) / 2
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(image).logits, model.eval()(image).logits, rtol=0, atol=0)
