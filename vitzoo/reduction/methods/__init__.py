"""One file a method; the options are the fields of its class."""
from .evit import EViT
from .expedite import Expedite
from .tome import ToMe

METHODS = {'evit': EViT, 'tome': ToMe, 'expedite': Expedite}
