"""Class activation maps by the recipe of docs/clients.md, against the same computed by hand."""
import clients_page as page
import numpy as np
import pytest
import torch
import zoo

pytest.importorskip('pytorch_grad_cam')
from pytorch_grad_cam import EigenCAM, GradCAM, LayerCAM  # noqa: E402
from pytorch_grad_cam.utils.image import scale_cam_image  # noqa: E402
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: E402

SIZE = (128, 160)


# what multiplies the maps (h, w, C), of their gradient
WEIGHTS = {GradCAM: lambda gradient: gradient.mean((0, 1)), LayerCAM: lambda gradient: gradient.relu()}


def by_hand(kind, model, layer, image, label, rows, columns):
    """The map of a layer that gives (B, rows, columns, C) or tokens in that order."""
    kept = []
    handle = layer.register_forward_hook(lambda module, args, output: kept.append(output))
    score = model(image)[0, label]
    handle.remove()
    gradient, = torch.autograd.grad(score, kept)
    maps, gradient = (x.detach().reshape(rows, columns, -1) for x in (kept[0], gradient))
    cam = (maps * WEIGHTS[kind](gradient)).sum(-1).relu()
    return scale_cam_image(scale_cam_image(cam[None].numpy(), image.shape[:1:-1]))  # of one layer, and of the mean over layers


@pytest.mark.parametrize('kind', WEIGHTS)
@pytest.mark.parametrize('name', zoo.MICRO)
def test_by_gradients(name, kind):
    model, image = zoo.build(name, num_classes=10), torch.randn(1, 3, *SIZE)
    layer, transform = page.recipe('Class activation maps')['target_layer'](model, *SIZE)
    rows, columns = (4, 4) if hasattr(model, 'grid') else tuple(s // model.feature_info[-1]['reduction'] for s in SIZE)
    with kind(model, [layer], reshape_transform=transform) as cam:
        maps = [cam(image, [ClassifierOutputTarget(label)]) for label in range(10)]
    assert kind is LayerCAM or any(found.max() > 0 for found in maps)  # of a class that nothing speaks for it is empty
    for label, found in enumerate(maps):
        np.testing.assert_allclose(found, by_hand(kind, model, layer, image, label, rows, columns), atol=1e-4)


@pytest.mark.parametrize('name', zoo.MICRO)
def test_without_gradients(name):
    model, image = zoo.build(name, num_classes=10), torch.randn(2, 3, *SIZE)
    layer, transform = page.recipe('Class activation maps')['target_layer'](model, *SIZE)
    with EigenCAM(model, [layer], reshape_transform=transform) as cam:
        found = cam(image, targets=None)
    assert found.shape == (2, *SIZE) and np.isfinite(found).all() and np.ptp(found) > 0
