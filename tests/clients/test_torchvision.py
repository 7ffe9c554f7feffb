"""torchvision: its detectors over our maps, its feature extractor and timm's."""
import clients_page as page
import pytest
import timm
import timm.layers
import torch
import zoo

pytest.importorskip('torchvision')
from torchvision.models.detection import FasterRCNN, RetinaNet  # noqa: E402
from torchvision.models.detection.rpn import AnchorGenerator  # noqa: E402
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names  # noqa: E402


def anchors():
    return AnchorGenerator(((16,), (32,), (64,), (128,), (256,)), ((.5, 1., 2.),) * 5)


DETECTORS = {
    'Faster R-CNN': lambda body: FasterRCNN(body, 3, min_size=96, max_size=160, rpn_anchor_generator=anchors()),
    'RetinaNet': lambda body: RetinaNet(body, 3, min_size=96, max_size=160, anchor_generator=anchors()),
}


@pytest.mark.parametrize('detector', DETECTORS)
@pytest.mark.parametrize('name', [*zoo.MICRO, 'resnet10t'])
def test_detectors_train_and_detect(name, detector):
    model = DETECTORS[detector](page.recipe('torchvision')['Pyramid'](name, 32)).train()
    images = [torch.rand(3, 100, 140), torch.rand(3, 131, 90)]
    targets = [dict(boxes=torch.tensor([[10., 20, 60, 80]]), labels=torch.tensor([1])) for _ in images]
    losses = model(images, targets)
    sum(losses.values()).backward()
    assert [path for path, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    with torch.no_grad():
        assert [set(found) for found in model.eval()(images)] == [{'boxes', 'labels', 'scores'}] * 2


@pytest.mark.parametrize('size', [(224, 224), (131, 167)])
@pytest.mark.parametrize('name', zoo.MICRO)
def test_feature_extractors(name, size):
    """torchvision's by the recipe, and timm's as it is, give the model's own maps and logits."""
    model, image = zoo.build(name, num_classes=5), torch.randn(2, 3, *size)
    last = model.feature_info[-1]['module']
    options = page.recipe('torchvision')['untraced']
    _, nodes = get_graph_node_names(model, tracer_kwargs=options)
    _, timm_s = timm.layers.get_graph_node_names(model)
    for found in (create_feature_extractor(model, [last, nodes[-1]], tracer_kwargs=options)(image),
                  timm.layers.create_feature_extractor(model, [last, timm_s[-1]])(image)):
        map_, logits = found.values()
        with torch.no_grad():
            torch.testing.assert_close(logits, model(image), rtol=1e-5, atol=1e-5)
            if not model.columnar:
                expected, = model.forward_intermediates(image, indices=1, intermediates_only=True, output_fmt='NHWC')
                torch.testing.assert_close(map_, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', zoo.MICRO)
def test_graphs_are_not_of_one_size(name):
    model = zoo.build(name, num_classes=5)
    traced = timm.layers.create_feature_extractor(model, timm.layers.get_graph_node_names(model)[1][-1:])
    with torch.no_grad():
        for size in (224, 224), (128, 160):
            image = torch.randn(1, 3, *size)
            logits, = traced(image).values()
            torch.testing.assert_close(logits, model(image), rtol=1e-5, atol=1e-5)
