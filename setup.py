"""Packaging: metadata, version ranges for users, extras. The tested, pinned set is in requirements/."""
import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r"__version__ = '([^']+)'", (here / 'vitzoo_runtime' / '__init__.py').read_text()).group(1)

mm_base = [
    'mmengine==0.10.7', 'mmdet==3.3.0', 'mmsegmentation==1.2.2',
    'ftfy', 'regex',  # imported by mmsegmentation, declared by it in optional extras alone
    'setuptools<82',  # mmengine imports pkg_resources, which setuptools 82 removed
    'pycocotools>=2.0.8', 'torchvision',
]
mm = ['mmcv-lite==2.1.0', *mm_base]  # mmcv 2.2 is refused by mmdet and mmseg
# ONNX Runtime has left Python 3.10 behind with 1.24
onnx = ['onnx>=1.23', 'onnxscript>=0.7',
        'onnxruntime>=1.31; python_version >= "3.11"', 'onnxruntime>=1.23; python_version < "3.11"']
viz = ['matplotlib>=3.7', 'scikit-learn>=1.3', 'pillow']
openvino = ['openvino>=2026.1']
completion = ['argcomplete>=3']  # of the command line, by the shell
# what docs/clients.md has recipes for
clients = ['segmentation-models-pytorch>=0.6', 'transformers>=5.24', 'peft>=0.21', 'accelerate>=1.15', 'lightning>=2.6', 'grad-cam>=1.5.7',
           'torchinfo>=1.8', 'open_clip_torch>=3.3', 'onnxslim>=0.1.98', 'fvcore', 'pandas']
dev = ['fvcore', 'pytest>=7', 'hypothesis', 'pytest-timeout', 'pytest-xdist', 'ruff']

setup(
    name='vitzoo',
    version=version,
    description='Efficient vision transformers: exact, fast, any size, from timm to MMDetection to ONNX',
    long_description=(here / 'README.md').read_text() if (here / 'README.md').exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['vitzoo', 'vitzoo.*', 'vitzoo_cli', 'vitzoo_cli.*', 'vitzoo_runtime', 'vitzoo_runtime.*']),
    # vitzoo/.mim holds links to configs/, tools/ and model-index.yml: a wheel and a source archive have the files in their place
    package_data={'vitzoo': ['py.typed', 'profiling/*.csv', '.mim/model-index.yml', '.mim/configs/**/*.py', '.mim/configs/metafiles/*.yml',
                             '.mim/tools/train.py', '.mim/tools/test.py', '.mim/tools/dist_train.sh']},
    install_requires=['torch>=2.11', 'timm>=1.0.31', 'rich', 'safetensors', 'huggingface_hub'],
    extras_require={'mm': mm, 'mm-base': mm_base, 'onnx': onnx, 'openvino': [*onnx, *openvino], 'viz': viz, 'completion': completion,
                    'clients': clients, 'dev': dev, 'all': [*mm, *onnx, *openvino, *viz, *completion, *dev]},
    entry_points={'console_scripts': ['vitzoo = vitzoo_cli:main']},
)
