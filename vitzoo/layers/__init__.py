"""Parts that more than one family uses."""
from .activations import Gelu as Gelu
from .checks import check_choice as check_choice
from .checks import check_image as check_image
from .checks import check_options as check_options
from .checks import check_pair as check_pair
from .checks import check_positive as check_positive
from .checks import check_rates as check_rates
from .checks import check_stages as check_stages
from .checks import check_token_pool as check_token_pool
from .fold import fold_batch_norm as fold_batch_norm
from .fold import fold_layer_scale as fold_layer_scale
from .nhwc import BatchNormNhwc as BatchNormNhwc
from .nhwc import ResidualDwConv as ResidualDwConv
from .tables import per_size as per_size
