"""What counters say of a model: fvcore with our handles is in tests/profiling; torchinfo and mmengine count layers that are called."""
import pytest
import timm
import torch
import zoo

import vitzoo

SIZE = 128
every_micro = pytest.mark.parametrize('name', zoo.MICRO)


@every_micro
def test_torchinfo(name):
    torchinfo = pytest.importorskip('torchinfo')
    model = timm.create_model(name)
    found = torchinfo.summary(model, (1, 3, SIZE, SIZE), verbose=0)
    assert found.total_params == sum(p.numel() for p in model.parameters())
    assert 0 < found.total_mult_adds <= 1.05 * vitzoo.profile(model, SIZE).macs  # what no layer does, as attention, it does not see


@pytest.mark.filterwarnings('ignore')
@every_micro
def test_mmengine(name):
    pytest.importorskip('mmengine')
    from mmengine.analysis import get_model_complexity_info
    model = timm.create_model(name).eval()
    found = get_model_complexity_info(model, (3, SIZE, SIZE), show_table=False, show_arch=False)
    assert found['params'] == sum(p.numel() for p in model.parameters())
    ours = vitzoo.profile(model, SIZE).macs
    print(name, found['flops'] / ours)
    assert 0.5 * ours < found['flops'] < 1.5 * ours


@pytest.mark.filterwarnings('ignore')
@every_micro
def test_fvcore_alone(name):
    """Without our handles: attention that is one operator goes uncounted, and norms are counted."""
    fvcore = pytest.importorskip('fvcore.nn')
    model = timm.create_model(name).eval()
    counter = fvcore.FlopCountAnalysis(model, torch.zeros(1, 3, SIZE, SIZE))
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    ours = vitzoo.profile(model, SIZE).macs
    assert 0.5 * ours < counter.total() < 1.5 * ours
