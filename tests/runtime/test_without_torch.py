"""The runtime stands on numpy, pillow and ONNX Runtime, and on nothing of ours."""
import ast
import os
import subprocess
import sys
from pathlib import Path

import vitzoo_runtime

ROOT = Path(vitzoo_runtime.__file__).parent


def test_no_line_imports_anything_else():
    allowed = {*sys.stdlib_module_names, 'numpy', 'PIL', 'onnxruntime'}
    for path in ROOT.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert {name.partition('.')[0] for name in names} <= allowed, f'{path.name}:{node.lineno}'


def test_the_modules_load_neither_torch_nor_us():
    modules = sorted(f'vitzoo_runtime.{path.stem}' for path in ROOT.glob('*.py') if path.stem != '__init__')
    assert len(modules) > 3
    code = f'import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n' \
           'print(sorted({"torch", "timm", "vitzoo", "vitzoo_cli", "onnxruntime"} & set(sys.modules)))'
    done = subprocess.run([sys.executable, '-c', code], env={**os.environ, 'PYTHONPATH': str(ROOT.parent)}, capture_output=True, text=True)
    assert done.stdout == '[]\n', done.stderr
