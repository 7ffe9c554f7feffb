"""What counters say of a model: fvcore with our handles is in tests/profiling; torchinfo and mmengine count layers that are called."""
import re

import clients_page as page
import pytest
import timm
import torch
import zoo

import vitzoo

SIZE = 128
every_micro = pytest.mark.parametrize('name', zoo.MICRO)


def check_share(share):
    """As the page says."""
    low, high = map(float, re.search(r'between ([\d.]+) and ([\d.]+)\s+of our count', page.TEXT).groups())
    assert low <= share <= high


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
    check_share(found['flops'] / vitzoo.profile(model, SIZE).macs)


@pytest.mark.filterwarnings('ignore')
@every_micro
def test_fvcore_alone(name):
    """Without our handles: attention that is one operator goes uncounted, and norms are counted."""
    fvcore = pytest.importorskip('fvcore.nn')
    model = timm.create_model(name).eval()
    counter = fvcore.FlopCountAnalysis(model, torch.zeros(1, 3, SIZE, SIZE))
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    check_share(counter.total() / vitzoo.profile(model, SIZE).macs)
