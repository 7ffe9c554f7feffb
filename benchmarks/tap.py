"""What TAP and ADL cost on one thread of a CPU, for the tables of docs/tap_adl.md: python -m benchmarks.tap"""
import copy
import statistics

import timm
import torch
import torch.nn.functional as F

from vitzoo.layers import TokenAwarePooling
from vitzoo.losses import AttentionDiversification, collect_attention
from vitzoo.profiling import take_turns
from vitzoo.tap import wrap_tap


def spread(values: list[float]) -> str:
    return f'{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]'


def unfolded(tap: TokenAwarePooling, x: torch.Tensor) -> torch.Tensor:
    """The same pooling of (B, C, H, W) by nine copies of the map for each reach."""
    B, C, H, W = x.shape
    maps = [x] + [F.unfold(x, 3, dilation=k, padding=k).view(B, C, 9, H, W).mean(2) for k in range(1, tap.num_scales)]
    return (torch.stack(maps, -1) * tap.mask(x.permute(0, 2, 3, 1))[:, None]).sum(-1)


@torch.inference_mode()
def operator() -> None:
    tap = TokenAwarePooling(448).eval()
    for batch in (1, 8):
        x = torch.randn(batch, 448, 14, 14)
        last = x.permute(0, 2, 3, 1).contiguous()
        runs = {'forward': lambda y=last: tap(y), 'forward_nchw': lambda y=x: tap.forward_nchw(y), 'unfolded': lambda y=x: unfolded(tap, y)}
        for name, values in take_turns(runs, rounds=12, min_seconds=0.3).cpu.items():
            print(f'batch {batch} {name:13} {spread([1e3 * seconds for seconds in values])} ms')


def model() -> None:
    plain = timm.create_model('deit_tiny_patch16_224').eval()
    pooled = {K: wrap_tap(copy.deepcopy(plain), K).eval() for K in (2, 4)}
    images, diversification = torch.randn(4, 3, 224, 224), AttentionDiversification()

    @torch.inference_mode()
    def infer(vit):
        vit(images)

    def train(vit, diverse):
        if diverse:
            with collect_attention(vit) as maps:
                loss = vit(images).square().mean()
            loss = loss + diversification(maps)
        else:
            loss = vit(images).square().mean()
        loss.backward()

    inference = {'plain': lambda: infer(plain), 'TAP 2': lambda: infer(pooled[2]), 'TAP 4': lambda: infer(pooled[4])}
    training = {'plain': lambda: train(plain, False), 'TAP 4': lambda: train(pooled[4], False), 'ADL': lambda: train(plain, True),
                'TAP 4 and ADL': lambda: train(pooled[4], True)}
    for kind, runs in {'inference': inference, 'training': training}.items():
        times = take_turns(runs, rounds=9, min_seconds=0.3).cpu
        for name, values in times.items():
            print(f'{kind} {name:13} {spread([a / b for a, b in zip(values, times["plain"], strict=True)])} of plain')


if __name__ == '__main__':
    operator()
    model()
