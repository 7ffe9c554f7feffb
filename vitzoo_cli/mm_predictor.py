"""Objects, regions or classes by a model of MMDetection, MMSegmentation or our classification configs, for `vitzoo predict`."""
from pathlib import Path

import numpy as np
from PIL import Image

from vitzoo_runtime import findings
from vitzoo_runtime.pictures import draw_classes
from vitzoo_runtime.terminal import printable

from .configs import find_config
from .quiet import quiet


class MmPredictor:
    """Call it with an RGB image: what was found, as JSON data, and pictures of it. `columns` and `lines` put that in a table.

    A detector's objects have a `mask`, if it makes them, as COCO's run lengths; a segmentor gives the label map as a second picture, whose
    pixel values are the class indices. Detections below `threshold` are left out.

    Raises:
        ValueError: a file is missing, the checkpoint does not fit or is no whole model's, or the config is for none of these libraries.
        ImportError: the extra `mm` is not installed.
    """

    def __init__(self, config: str, checkpoint: str, threshold: float):
        if not Path(checkpoint).is_file():
            raise ValueError(f'{checkpoint}: no such file')
        with quiet():
            self._load(config, checkpoint, threshold)

    def _load(self, config: str, checkpoint: str, threshold: float) -> None:
        file = find_config(config)
        import torch

        import vitzoo.mm
        self.threshold = threshold
        from vitzoo.mm.safe_load import read_content
        cfg = vitzoo.mm.setup(file)
        scope, device = cfg.get('default_scope'), 'cuda:0' if torch.cuda.is_available() else 'cpu'
        if scope == 'mmdet':
            from mmdet.apis import inference_detector, init_detector
            self.task, self.columns, self.find = 'detection', ('found', 'best score'), self.find_objects
            self.infer, self.model = inference_detector, init_detector(cfg, None, 'random', device)
        elif scope == 'mmseg':
            from mmseg.apis import inference_model, init_model
            self.task, self.columns, self.find = 'segmentation', ('class', 'share'), self.find_regions
            self.infer, self.model = inference_model, init_model(cfg, None, device)
        elif cfg.get('model', {}).get('type') == 'vitzoo.Classifier':
            from vitzoo.mm.classification import inference_classifier, init_classifier
            self.task, self.columns, self.find = 'classification', ('class', 'probability'), self.find_classes
            self.infer, self.model = inference_classifier, init_classifier(cfg, checkpoint, device=device)
        else:
            raise ValueError(f'{config}: default_scope={scope!r}; expected a config of MMDetection or MMSegmentation (mmdet, mmseg), '
                             'or one with a vitzoo.Classifier')
        if self.task != 'classification':  # those libraries would read the file unchecked, and pass over what does not fit
            vitzoo.mm.load_whole(self.model, checkpoint)
            self.model.dataset_meta = {'classes': _class_names(read_content(checkpoint), cfg)}
        if self.task == 'segmentation':  # that library looks for the images' way into the model elsewhere than its own testing does
            self.model.cfg.test_pipeline = _test_dataset(cfg).get('pipeline') or cfg.get('test_pipeline')
            if not self.model.cfg.test_pipeline:
                raise ValueError(f'{config} does not say how images are prepared: expected test_dataloader.dataset.pipeline')
        self.classes = self.model.dataset_meta['classes']
        self.about = {'config': config, 'checkpoint': checkpoint, 'task': self.task, 'classes': list(self.classes)}
        self.right = self.columns[1:]

    def __call__(self, image: Image.Image) -> tuple[dict, dict[str, Image.Image]]:
        with quiet():
            return self.find(image)

    def find_objects(self, image: Image.Image) -> tuple[dict, dict[str, Image.Image]]:
        found = self.infer(self.model, _bgr(image)).pred_instances.cpu()
        found = found[found.scores >= self.threshold]
        found = found[found.scores.argsort(descending=True)]
        masks = found.masks.numpy() if 'masks' in found else None
        return findings.objects(image, found.bboxes.numpy(), found.labels.numpy(), found.scores.numpy(), masks, self.classes)

    def find_regions(self, image: Image.Image) -> tuple[dict, dict[str, Image.Image]]:
        regions = self.infer(self.model, _bgr(image)).pred_sem_seg.data.squeeze(0).cpu().numpy()
        return findings.regions(image, regions, self.classes)

    def find_classes(self, image: Image.Image) -> tuple[dict, dict[str, Image.Image]]:
        probabilities = self.infer(self.model, image).cpu().numpy()
        if len(probabilities) != len(self.classes):
            raise ValueError(f'the model tells {len(probabilities)} classes apart, the checkpoint names {len(self.classes)}')
        best = np.argsort(-probabilities, kind='stable')[:5]
        classes = [{'class': int(i), 'name': self.classes[i], 'probability': float(probabilities[i])} for i in best]
        return {'classes': classes}, {'picture': draw_classes(image, classes)}

    def lines(self, found: dict) -> list[tuple]:
        return findings.lines(found, self.columns[1])


def _test_dataset(cfg) -> dict:
    """The data that a config is tested on, without what is wrapped around them."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'pipeline' not in dataset and (dataset.get('dataset') or dataset.get('datasets')):
        dataset = dataset.get('dataset') or dataset['datasets'][0]
    return dataset


def _class_names(content: object, cfg) -> tuple[str, ...]:
    """As the checkpoint names the classes, in the words of any version, else the data that the config is tested on."""
    meta = content.get('meta') if isinstance(content, dict) else None
    meta = meta if isinstance(meta, dict) else {}
    of_data = meta.get('dataset_meta')
    names = {str(key).lower(): value for key, value in {**meta, **(of_data if isinstance(of_data, dict) else {})}.items()}.get('classes')
    if names is None:
        from mmengine.registry import DATASETS
        dataset = _test_dataset(cfg)
        known = getattr(DATASETS.get(dataset.get('type', '')), 'METAINFO', {})
        names = (dataset.get('metainfo') or {}).get('classes') or known.get('classes') or ()
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'the checkpoint calls its classes {printable(repr(names)[:1000])}: expected a list of names')
    return tuple(names)


def _bgr(image: Image.Image) -> np.ndarray:
    """As these libraries read images."""
    return np.ascontiguousarray(np.asarray(image)[..., ::-1])
