"""The model families, one file each. Importing this package registers them with timm."""
from . import svit as svit
