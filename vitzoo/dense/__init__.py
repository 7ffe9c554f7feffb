"""Dense prediction: feature pyramids at strides 4, 8, 16, 32 from any of our models and any of timm's that has them."""
from .backbone import DenseBackbone as DenseBackbone
