"""Golden cases: what published code computes, on weights that anyone can rebuild from their names and shapes.

A case in `tests/data` holds facts (JSON) and outputs. Its checkpoint is a function of the published names and shapes, its image of a
seed, so that no weight is shipped. The random streams below are part of the cases and must not change.
"""
import json
import re
import zlib
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parent / 'data'


def load_case(path: str | Path) -> tuple[dict, dict[str, np.ndarray]]:
    """(facts, published outputs) of a case, path relative to `tests/data`."""
    with np.load(DATA / path) as file:
        outputs = dict(file)
    return json.loads(outputs.pop('meta').tobytes()), outputs


def our_name(facts: dict) -> str:
    """Our registry's name for the published model of a case."""
    name = facts['model'].removesuffix('_dense').replace('stvit_r_swin_', 'stvit_').replace('davit_', 'vz_davit_')
    return re.sub(r'^rmt_[tsbl]', lambda match: {'t': 'rmt_tiny', 's': 'rmt_small', 'b': 'rmt_base', 'l': 'rmt_large'}[match[0][-1]], name)


def limit(facts: dict) -> float:
    """The largest error of a case that is rounding.

    Dense STViT: the published mask adds -1000 to every logit of a map that needs no padding, which rounds the logits. RMT: rounding of
    the published code itself is above 1e-6.
    """
    return 2e-5 if facts['model'].endswith('_dense') or facts['family'] == 'rmt' else 1e-5


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 values of one published tensor, on the scale that its kind usually has."""
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    if len(shape) in (2, 4):  # linear and convolution kernels
        return x * np.float32(np.prod(shape[1:]) ** -0.5)
    tenth = np.float32(0.1) * x
    if name.endswith('running_var'):
        return 1 + np.abs(tenth)
    scale = name.endswith('weight') or 'gamma' in name or 'scale' in name
    return 1 + tenth if scale and len(shape) <= 1 and not name.endswith('running_mean') else tenth


def make_state_dict(entries: list, rescale: list = ()) -> dict[str, torch.Tensor]:
    """The published checkpoint from its [name, shape, dtype] entries; tensors whose name matches a [pattern, factor] are scaled."""
    state = {}
    for name, shape, _ in entries:
        x = fill(name, tuple(shape))
        for pattern, factor in rescale:
            if re.search(pattern, name):
                x = x * np.float32(factor)
        state[name] = torch.from_numpy(x)
    return state


def make_input(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Images (B, C, H, W): six plane waves a channel and a little noise."""
    rng = np.random.default_rng(seed)
    y, x = (np.linspace(0, 1, n, dtype=np.float32) for n in shape[2:])
    image = np.zeros(shape, np.float32)
    for channel in image.reshape(-1, *shape[2:]):
        for _ in range(6):
            fy, fx, phase, amplitude = (rng.uniform(*limits) for limits in ((0.5, 6), (0.5, 6), (0, 6.28), (0.2, 0.8)))
            wave = np.sin(2 * np.pi * (fy * y[:, None] + fx * x) + phase)
            channel += np.float32(amplitude) * wave.astype(np.float32)
    return torch.from_numpy((image + 0.1 * rng.standard_normal(shape, dtype=np.float32)).astype(np.float32))


def take(output: torch.Tensor, index: str) -> np.ndarray:
    """What a case stores of an output: '[:, ::8, ::4, ::4]' and the like."""
    steps = [slice(*(int(n) if n else None for n in part.split(':'))) for part in index.strip('[]').replace(' ', '').split(',')]
    return output.numpy()[tuple(steps)]


def error(output: np.ndarray, published: np.ndarray) -> float:
    """Largest difference, as a share of the largest published value."""
    assert output.shape == published.shape
    return float(np.abs(output - published).max() / np.abs(published).max())
