"""Pictures of predictions, of token maps, and of quality against cost; pillow and matplotlib draw them, without torch."""
from vitzoo_runtime.pictures import contact_sheet as contact_sheet
from vitzoo_runtime.pictures import draw_detections as draw_detections
from vitzoo_runtime.pictures import draw_segmentation as draw_segmentation
from vitzoo_runtime.pictures import palette as palette

from .pareto import draw_pareto as draw_pareto
from .token_maps import draw_token_maps as draw_token_maps
