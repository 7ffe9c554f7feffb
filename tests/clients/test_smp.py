"""segmentation_models_pytorch: our pyramids by its `tu-` encoders, any model by the recipe of docs/clients.md."""
import clients_page as page
import pytest
import timm
import torch
import zoo

smp = pytest.importorskip('segmentation_models_pytorch')

WITHOUT_STRIDE_4 = [name for name in zoo.MICRO if timm.create_model(name).feature_info[0]['reduction'] != 4 or zoo.is_columnar(name)]
PYRAMIDS = [name for name in zoo.MICRO if name not in WITHOUT_STRIDE_4]
ARCHITECTURES = ('Unet', 'FPN', 'UPerNet', 'MAnet', 'Linknet', 'PSPNet', 'Segformer', 'UnetPlusPlus')


def make(architecture, name, **options):
    return smp.create_model(architecture, f'tu-{name}', encoder_weights=None, classes=3, **options)


def check_trains(model, size, channels=3):
    image = torch.randn(2, channels, *size)
    masks = model.train()(image)
    assert masks.shape == (2, 3, *size)
    masks.square().mean().backward()
    assert [path for path, p in model.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        assert torch.isfinite(model.eval()(image)).all()


@pytest.mark.parametrize('architecture', ARCHITECTURES)
@pytest.mark.parametrize('name', PYRAMIDS)
def test_pyramids_serve_as_encoders(name, architecture):
    check_trains(make(architecture, name), (128, 160))


@pytest.mark.parametrize('name', PYRAMIDS)
def test_odd_sizes(name):
    """Of the decoders that take them: those of the others are refused by smp, for any encoder (see the page's table)."""
    check_trains(make('Unet', name), (131, 167))
    with torch.no_grad():
        assert make('MAnet', name).eval()(torch.randn(1, 3, 160, 96)).shape == (1, 3, 160, 96)


@pytest.mark.parametrize('channels', [1, 4])
@pytest.mark.parametrize('name', PYRAMIDS)
def test_channels(name, channels):
    check_trains(make('Unet', name, in_channels=channels), (128, 96), channels)


@pytest.mark.parametrize('name', PYRAMIDS)
def test_encoder_gives_the_maps_of_the_model(name):
    model = make('Unet', name).eval()
    features = zoo.build(name, features_only=True)
    model.encoder.model.load_state_dict(features.state_dict())
    image = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        for found, expected in zip(model.encoder(image)[2:], features(image), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize('name', [name for name in zoo.MICRO if zoo.is_columnar(name)])
def test_columnar_models_in_dpt(name):
    model = make('DPT', name).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 128, 160)).shape == (1, 3, 128, 160)


@pytest.mark.parametrize('architecture', ['Unet', 'FPN'])
@pytest.mark.parametrize('name', [*WITHOUT_STRIDE_4, 'svit_micro', 'test_vit'])
def test_recipe_takes_any_model(name, architecture):
    options = {'img_size': 160} if name == 'test_vit' else {}
    smp.encoders.encoders['vitzoo'] = dict(encoder=page.recipe('segmentation_models_pytorch')['PyramidEncoder'], pretrained_settings={},
                                           params=dict(model_name=name, in_chans=4, **options))
    model = smp.create_model(architecture, 'vitzoo', encoder_weights=None, in_channels=4, classes=3)
    check_trains(model, (128, 160), 4)


@pytest.mark.parametrize('name', PYRAMIDS)
def test_save_and_load(name, tmp_path):
    model = make('FPN', name).eval()
    model.save_pretrained(tmp_path)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(smp.from_pretrained(tmp_path).eval()(image), model(image), rtol=0, atol=0)


@pytest.mark.parametrize('name', ['svit_micro', 'rmt_micro'])
def test_export(name, tmp_path):
    """By torch.export as smp's own models are, and by ours with its check."""
    pytest.importorskip('onnxruntime')
    import vitzoo
    model, image = make('Unet', name).eval(), torch.randn(2, 3, 64, 96)
    exported = torch.export.export(model, (image,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(image), model(image), rtol=1e-4, atol=1e-5)
    vitzoo.export_onnx(model, tmp_path / 'unet.onnx', (64, 96))
    assert (tmp_path / 'unet.onnx').exists()
