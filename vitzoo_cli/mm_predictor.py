"""Objects or regions by a detector of MMDetection or a segmentor of MMSegmentation, for `vitzoo predict`."""
import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image


class MmPredictor:
    """Call it with an RGB image: what was found, as JSON data, and a picture of it. `columns` and `lines` put that in a table.

    Detections below `threshold` are left out.

    Raises:
        ValueError: a file is missing, or the config is for neither library.
        ImportError: the extra `mm` is not installed.
    """

    def __init__(self, config: str, checkpoint: str, threshold: float):
        for path in (config, checkpoint):
            if not Path(path).is_file():
                raise ValueError(f'{path}: no such file')
        import torch

        import vitzoo.mm
        self.threshold = threshold
        cfg = vitzoo.mm.setup(config)
        scope = cfg.get('default_scope')
        # those libraries deprecate a lot on import, and say what they load on stdout
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            if scope == 'mmdet':
                from mmdet.apis import inference_detector, init_detector
                self.task, self.infer, init = 'detection', inference_detector, init_detector
            elif scope == 'mmseg':
                from mmseg.apis import inference_model, init_model
                self.task, self.infer, init = 'segmentation', inference_model, init_model
            else:
                raise ValueError(f'{config}: default_scope={scope!r}; expected a config of MMDetection or MMSegmentation (mmdet, mmseg)')
            self.model = init(cfg, checkpoint, device='cuda:0' if torch.cuda.is_available() else 'cpu')
        self.classes = self.model.dataset_meta['classes']
        self.about = {'config': config, 'checkpoint': checkpoint, 'task': self.task, 'classes': list(self.classes)}
        self.columns = ('found', 'best score') if self.task == 'detection' else ('class', 'share')
        self.right = self.columns[1:]

    def __call__(self, image: Image.Image) -> tuple[dict, Image.Image]:
        from vitzoo.viz import draw_detections, draw_segmentation
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            sample = self.infer(self.model, np.ascontiguousarray(np.asarray(image)[..., ::-1]))  # these libraries read BGR
        if self.task == 'segmentation':
            regions = sample.pred_sem_seg.data.squeeze(0).cpu().numpy()
            counts = np.bincount(regions.ravel(), minlength=len(self.classes))
            shares = [{'class': int(i), 'name': self.classes[i], 'share': float(counts[i] / regions.size)}
                      for i in np.argsort(-counts, kind='stable') if counts[i]]
            return {'classes': shares}, draw_segmentation(image, regions, self.classes)
        found = sample.pred_instances.cpu()
        found = found[found.scores >= self.threshold]
        found = found[found.scores.argsort(descending=True)]
        masks = found.masks.numpy() if 'masks' in found else None
        boxes, labels, scores = found.bboxes.numpy(), found.labels.numpy(), found.scores.numpy()
        objects = [{'label': int(label), 'name': self.classes[label], 'score': float(score), 'box': [round(float(v), 2) for v in box]}
                   for box, label, score in zip(boxes, labels, scores, strict=True)]
        return {'objects': objects}, draw_detections(image, boxes, labels, scores, masks, self.classes)

    def lines(self, found: dict) -> list[tuple]:
        if 'classes' in found:
            return [(c['name'], f'{c["share"]:.1%}') for c in found['classes'][:5]]
        names = {}
        for o in found['objects']:
            names.setdefault(o['name'], []).append(o['score'])
        return [(f'{len(scores)} x {name}', f'{max(scores):.2f}') for name, scores in names.items()] or [('nothing', '')]
