"""Masks in COCO's uncompressed run-length code, which `pycocotools.mask.frPyObjects` reads."""
import numpy as np


def encode_rle(mask: np.ndarray) -> dict:
    """{'size': [H, W], 'counts'} of a mask (H, W): the lengths of its runs column by column, first the number of zeros (perhaps 0)."""
    flat = np.asarray(mask, bool).ravel('F')
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    return {'size': list(mask.shape), 'counts': np.diff(edges, prepend=0, append=flat.size).tolist()}


def decode_rle(rle: dict) -> np.ndarray:
    """The mask (H, W), bool, of `encode_rle`'s result."""
    runs = np.arange(len(rle['counts'])) % 2 == 1
    return np.repeat(runs, rle['counts']).reshape(rle['size'], order='F')
