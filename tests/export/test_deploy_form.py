"""The form in which models are exported."""
from pathlib import Path

import pytest
import torch
import zoo
from torch import nn

import vitzoo
from vitzoo.export.deploy import deploy_form


@pytest.mark.parametrize('name', zoo.MICRO)
def test_deployed_model_computes_the_same(name):
    model, x = zoo.build(name), torch.randn(2, 3, 224, 224)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    deployed = deploy_form(model)
    with torch.inference_mode():
        expected, found = model(x), deployed(x)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_module_in_two_places_stays_one():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = nn.AdaptiveAvgPool2d(1)

        def forward(self, x):
            return self.first(x) + self.second(x)

    model, x = Twice(), torch.randn(1, 2, 4, 4)
    deployed = deploy_form(model)
    assert deployed.first is deployed.second and type(deployed.first) is not nn.AdaptiveAvgPool2d
    torch.testing.assert_close(deployed(x), model(x))


def test_parametrised_layer_becomes_plain_and_its_original_stays():
    model, x = nn.Sequential(nn.Linear(3, 3)), torch.randn(2, 3)
    nn.utils.parametrizations.orthogonal(model[0])
    deployed = deploy_form(model)
    assert type(deployed[0]) is nn.Linear and nn.utils.parametrize.is_parametrized(model[0], 'weight')
    torch.testing.assert_close(deployed(x), model(x))


def test_unknown_runtime_is_refused():
    with pytest.raises(ValueError, match="runtime='abacus': expected 'onnx'"):
        deploy_form(nn.Identity(), 'abacus')


def test_no_forward_asks_whether_it_is_exported():
    """What export wants written otherwise is in `deploy` methods."""
    root = Path(vitzoo.__file__).parent
    files = [*(root / 'models').glob('*.py'), *(root / 'layers').glob('*.py')]
    assert files and not [file.name for file in files if 'is_exporting' in file.read_text()]
