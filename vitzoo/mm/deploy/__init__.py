"""Whole detectors and segmentors as modules that `vitzoo.export_onnx` takes: a normalised image in, boxes or a label map out.

    model = mmdet.apis.init_detector(config, checkpoint, device='cpu')
    vitzoo.export_onnx(vitzoo.mm.deploy.detector(model, (800, 1344)), 'detector.onnx', (800, 1344), dynamic_batch=False)

The modules give what the model's own `predict` gives for an image of this size (rescale=False). They are copies in inference form.
`modules` holds them, `boxes` what they compute of the maps, `refusals` what cannot be exported and why.
"""
from .modules import detector, raw, segmentor

__all__ = ['detector', 'raw', 'segmentor']
