"""Pictures: predictions."""
from .predictions import contact_sheet as contact_sheet
from .predictions import draw_detections as draw_detections
from .predictions import draw_segmentation as draw_segmentation
from .predictions import palette as palette
