"""CrossViT of timm's: a classifier with two branches, which rescales images of other sizes inside."""
import pytest
import timm
import torch

import vitzoo

pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')


@pytest.mark.slow
@pytest.mark.parametrize('size', [(240, 240), (208, 256)], ids=str)
def test_classifies_and_exports(size, tmp_path):
    model = timm.create_model('crossvit_tiny_240').eval()
    assert sum(p.numel() for p in model.parameters()) == 7_014_800
    with torch.inference_mode():
        assert model(torch.randn(2, 3, *size)).shape == (2, 1000)
    report = vitzoo.export_onnx(model, tmp_path / 'crossvit.onnx', size)
    assert report.outputs == ('logits',) and len(report.checks) >= 2  # compared with PyTorch, batches 1 and 3
