"""The model families, one file each. Importing this package registers them with timm."""
from . import davit as davit
from . import stvit_deit as stvit_deit
from . import svit as svit
