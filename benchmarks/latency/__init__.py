"""What docs/latency.md is made by, with its CSV.

`python -m benchmarks.latency`: the latency of our models and of timm's strongest on a CPU, one thread, one image, in PyTorch and in ONNX
Runtime in float32 and int8, at 224 and 640. `plan` says what, `measure` does it, `report` makes the page.
"""
