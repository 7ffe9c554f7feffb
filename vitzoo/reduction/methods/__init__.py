"""One file a method; the options are the fields of its class."""
from .dynamicvit import DynamicViT
from .evit import EViT
from .expedite import Expedite
from .gtp import GTP
from .select import Select
from .sparsifiner import Sparsifiner
from .tome import ToMe

METHODS = {'evit': EViT, 'tome': ToMe, 'gtp': GTP, 'expedite': Expedite, 'dynamicvit': DynamicViT, 'sparsifiner': Sparsifiner,
           'select': Select}
