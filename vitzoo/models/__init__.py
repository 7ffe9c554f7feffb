"""The model families, one file each. Importing this package registers them with timm."""
from . import biformer as biformer
from . import davit as davit
from . import lookupvit as lookupvit
from . import stvit as stvit
from . import stvit_deit as stvit_deit
from . import svit as svit
