"""Parts that more than one family uses."""
from .activations import Gelu as Gelu
from .checks import check_image as check_image
from .checks import check_options as check_options
from .checks import check_positive as check_positive
from .checks import check_stages as check_stages
from .fold import fold_batch_norm as fold_batch_norm
from .fold import fold_layer_scale as fold_layer_scale
from .nhwc import BatchNormNhwc as BatchNormNhwc
from .nhwc import ResidualDwConv as ResidualDwConv
from .tables import per_size as per_size
