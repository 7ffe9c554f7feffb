"""Digit scenes: real handwritten digits on textured backgrounds, with boxes, masks, semantic maps and crops.

The digits are the 1,797 images of 8x8 pixels inside scikit-learn's wheel (`sklearn.datasets.load_digits`: the test part of Alpaydin and
Kaynak's "Optical Recognition of Handwritten Digits", UCI, CC BY 4.0). They are scaled, coloured and laid over each other, which makes a
small but real task for detection, instance and semantic segmentation and classification, without a download. A fixed fifth of every class
is kept from training, and 145 digits of it from validation: no source digit occurs in two of the splits `train`, `val` and `test`, whatever
the seed. Choose on `val`, report `test`.

    python -m vitzoo.datasets.digit_scenes --out data/digit_scenes --preset standard --seed 0

writes three folders, each complete in itself and with its `manifest.json`:

    detection/annotations/det_{train,val,test}.json   COCO: boxes, masks (uncompressed RLE), category id = digit + 1, later ids on top
    detection/{train,val,test}/000000.png             128x160 RGB
    segmentation/img_dir/{train,val,test}/000000.png  the same scenes, more of them
    segmentation/ann_dir/{train,val,test}/000000.png  8 bit grey: 0 background, digit + 1 elsewhere (no pixel is ignored)
    classification/{train,val,test}/7/000000_2.png    square crops of the same scenes, in one folder a class

Scene `i` of a split is a function of (preset, seed, split, i) alone, so the parts show the same scenes and a longer data set begins with
the shorter one. All arithmetic that reaches a pixel is in integers (or in floats that hold integers exactly), and random numbers come from
`numpy.random.RandomState`, whose stream NumPy has promised not to change (NEP 19): the same seed gives the same pixels everywhere.
"""
from vitzoo_runtime.masks import decode_rle, encode_rle  # noqa: F401

from .build import VERSION, DigitScenes, build, main, preview  # noqa: F401  (the function `build` hides the module)
from .parts import IMG_SUFFIX, MANIFEST, PARTS, SEG_MAP_SUFFIX, crop  # noqa: F401
from .scenes import (  # noqa: F401
    CLASSES,
    PRESETS,
    SEG_CLASSES,
    SEG_PALETTE,
    SPLITS,
    Preset,
    Scene,
    fingerprint,
    make_scene,
    resolve_preset,
    source_digits,
)
