"""Token reduction for vision transformers of timm, and the way back to the grid."""
from . import training as training
from .apply import Reduced as Reduced
from .apply import reduce_tokens as reduce_tokens
from .apply import restore_tokens as restore_tokens
from .compare import Comparison as Comparison
from .compare import compare as compare
from .method import Method as Method
from .method import Seen as Seen
from .method import Tokens as Tokens
from .methods import METHODS as METHODS
from .settings import Setting as Setting
from .settings import default_settings as default_settings
from .settings import parse_setting as parse_setting
from .settings import setting_of as setting_of
