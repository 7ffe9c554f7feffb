"""One file a method; the options are the fields of its class."""
from .dynamicvit import DynamicViT
from .evit import EViT
from .sparsifiner import Sparsifiner
from .tome import ToMe

METHODS = {'evit': EViT, 'tome': ToMe, 'dynamicvit': DynamicViT, 'sparsifiner': Sparsifiner}
