"""What runs a checked ONNX file with numpy, pillow and ONNX Runtime alone, and what both sides of that boundary use.

Nothing here imports PyTorch or another package of ours. The modules: `onnx_model` (a file of `vitzoo export`, ready to run), `images`
(reading, preprocessing), `masks` (COCO's codes), `findings` (what was found, as data and pictures), `pictures`, `files`.
"""

__version__ = '0.1.0'  # of the distribution; here, where it can be asked for without PyTorch
