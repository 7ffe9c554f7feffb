"""What is measured."""
import timm

import vitzoo  # noqa: F401  (registers our models)

SIZES = (224, 640)
# as rows call them -> runtime and precision of a case
RUNTIMES = {'eager': ('eager', 'fp32'), 'onnxruntime': ('onnxruntime', 'fp32'), 'onnxruntime int8': ('onnxruntime', 'int8')}
# timm's that are strong on a CPU, a few of each family, smallest first
PEERS = (
    'cpubone_s0', 'cpubone_b1_bfrobust', 'cpubone_b3', 'lowformer_b1', 'lowformer_b3', 'repvit_m1_1', 'repvit_m2_3',
    'efficientvit_b1', 'efficientvit_b2', 'mobilenetv4_conv_small', 'mobilenetv4_conv_medium', 'mobilenetv4_hybrid_medium',
    'convnext_nano', 'convnext_tiny', 'caformer_s18', 'swin_tiny_patch4_window7_224', 'swin_small_patch4_window7_224', 'davit_tiny',
    'davit_small', 'deit_tiny_patch16_224', 'deit_small_patch16_224', 'deit_base_patch16_224', 'fastvit_t8', 'fastvit_sa12',
    'fastvit_sa24', 'shvit_s4', 'efficientformerv2_s1', 'efficientformerv2_s2', 'edgenext_small', 'edgenext_base', 'swiftformer_s',
    'swiftformer_l1',
)


def is_ours(name: str) -> bool:
    return timm.model_entrypoint(name).__module__.startswith('vitzoo.')


def ours() -> list[str]:
    """All of the registry but the micro models, which are for tests."""
    return [name for name in timm.list_models() if is_ours(name) and not name.endswith('_micro')]


def models() -> list[str]:
    return [*ours(), *PEERS]
