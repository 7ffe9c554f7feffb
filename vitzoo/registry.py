"""mmengine's way in: it imports this module by itself when it meets `type='vitzoo....'`, and `vitzoo.mm` when something is looked up."""
from vitzoo.extras import require

root = require('mmengine.registry', 'mm')
Registry = root.Registry


def _child(parent: Registry) -> Registry:
    return Registry(parent.name, parent=parent, scope='vitzoo', locations=['vitzoo.mm'])


MODELS = _child(root.MODELS)
DATASETS = _child(root.DATASETS)
DATA_SAMPLERS = _child(root.DATA_SAMPLERS)
FUNCTIONS = _child(root.FUNCTIONS)
HOOKS = _child(root.HOOKS)
METRICS = _child(root.METRICS)
OPTIM_WRAPPER_CONSTRUCTORS = _child(root.OPTIM_WRAPPER_CONSTRUCTORS)
STRATEGIES = _child(root.STRATEGIES)
