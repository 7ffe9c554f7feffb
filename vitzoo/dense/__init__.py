"""Dense prediction: feature pyramids at strides 4, 8, 16, 32 from any of our models and any of timm's."""
from .backbone import DenseBackbone as DenseBackbone
from .pyramid import SimpleFeaturePyramid as SimpleFeaturePyramid
