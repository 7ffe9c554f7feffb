"""open_clip: our models as the image tower, by `timm_model_name`."""
import pytest
import timm
import torch
import zoo

open_clip = pytest.importorskip('open_clip')
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg  # noqa: E402


def clip(name, **options):
    vision = CLIPVisionCfg(timm_model_name=name, timm_model_pretrained=False, timm_pool='avg', timm_proj='linear', image_size=64, **options)
    text = CLIPTextCfg(context_length=8, vocab_size=50, width=32, heads=2, layers=1)
    return CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)


@pytest.mark.parametrize('name', zoo.MICRO)
def test_tower_trains(name):
    model = clip(name).train()
    images, texts = torch.randn(2, 3, 64, 64), torch.randint(50, (2, 8))
    image, text, scale = model(images, texts)
    loss = torch.nn.functional.cross_entropy(scale * image @ text.T, torch.arange(2))
    loss.backward()
    assert image.shape == (2, 16)
    assert [path for path, p in model.visual.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('name', zoo.MICRO)
def test_tower_is_the_model(name):
    model, images = clip(name).eval(), torch.randn(2, 3, 64, 64)
    own = timm.create_model(name, num_classes=0, global_pool='avg').eval()
    own.load_state_dict(model.visual.trunk.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model.visual.trunk(images), own(images), rtol=0, atol=0)
        assert model.encode_image(images).shape == (2, 16)


@pytest.mark.parametrize('unlocked', [0, 1])
@pytest.mark.parametrize('name', zoo.MICRO)
def test_lock(name, unlocked):
    """Locked image text tuning: the tower, or all but its last groups, keeps its weights."""
    model = clip(name)
    model.lock_image_tower(unlocked_groups=unlocked)
    trainable = {path for path, p in model.visual.trunk.named_parameters() if p.requires_grad}
    everything = {path for path, _ in model.visual.trunk.named_parameters()}
    assert trainable == set() if unlocked == 0 else set() < trainable < everything


@pytest.mark.parametrize('name', zoo.MICRO)
def test_gradient_checkpointing(name):
    model, images = clip(name).train(), torch.randn(2, 3, 64, 64)
    model.set_grad_checkpointing()
    model.encode_image(images).sum().backward()
    assert [path for path, p in model.visual.named_parameters() if p.grad is None] == []
