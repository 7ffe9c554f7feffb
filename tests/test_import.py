"""`import vitzoo` needs torch and timm alone; what needs more says which extra brings it. Each test has a Python process of its own."""
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import vitzoo

ROOT = Path(vitzoo.__file__).parent
EXTRAS = ['mmengine', 'mmcv', 'mmdet', 'mmseg', 'pycocotools', 'onnx', 'onnxscript', 'onnxruntime', 'openvino', 'fvcore', 'matplotlib',
          'sklearn', 'cv2']
# an environment without the extras: no finder finds them
BLOCK = f'''
import sys
class WithoutExtras:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *args):
        return None if name.split('.')[0] in {EXTRAS} else self.finder.find_spec(name, *args)
sys.meta_path[:] = [WithoutExtras(finder) for finder in sys.meta_path]
'''


def run(code, block=True):
    """What the code prints, as JSON."""
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', (BLOCK if block else '') + code], capture_output=True, text=True,
                          cwd=ROOT.parent, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_brings_nothing_but_ourselves():
    """With every extra installed, the import leaves them alone."""
    new = run('''
import json, sys
import torch, timm
before = set(sys.modules)
import vitzoo
print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))))
''', block=False)
    assert new == ['vitzoo', 'vitzoo_runtime']  # both are in our wheel


def test_works_without_the_extras():
    assert run('''
import json, torch, timm, vitzoo
model = timm.create_model('svit_micro', num_classes=3).eval()
report = vitzoo.load_checkpoint(model, model.state_dict())
dense = vitzoo.DenseBackbone('svit_micro')
with torch.no_grad():
    shapes = [list(m.shape) for m in dense(torch.randn(1, 3, 64, 64))]
print(json.dumps([list(model(torch.randn(1, 3, 64, 64)).shape), shapes[0][2:], len(report.loaded) > 0, vitzoo.profile(model, 64).macs > 0]))
''') == [[1, 3], [16, 16], True, True]


def test_every_module_imports_or_names_its_extra():
    modules = sorted('.'.join(path.relative_to(ROOT.parent).with_suffix('').parts).removesuffix('.__init__') for path in ROOT.rglob('*.py'))
    modules = [name for name in modules if not name.endswith('__main__')]
    assert len(modules) > 20
    found = run(f'''
import importlib, json, sys
result = {{}}
for name in {modules}:
    try:
        importlib.import_module(name)
        result[name] = ''
    except ImportError as e:
        result[name] = str(e)
print(json.dumps(result))
''')
    fails = {name: message for name, message in found.items() if message}
    assert all('pip install "vitzoo[' in message for message in fails.values()), fails
    assert all(name.startswith(('vitzoo.mm', 'vitzoo.registry')) for name in fails), fails
    assert 'vitzoo.mm' in fails


def test_use_of_an_extra_names_it(tmp_path):
    calls = {
        "vitzoo.export_onnx(timm.create_model('svit_micro'), 'model.onnx', 64)": 'onnx',
        'import vitzoo.mm': 'mm',
        'import vitzoo.registry': 'mm',
        'from vitzoo.datasets import digit_scenes; digit_scenes.source_digits()': 'viz',
    }
    found = run(f'''
import json, os, timm, vitzoo
os.chdir({str(tmp_path)!r})
messages = []
for call in {list(calls)}:
    try:
        exec(call)
        messages.append('worked')
    except ImportError as e:
        messages.append(str(e))
print(json.dumps(messages))
''')
    for extra, message in zip(calls.values(), found, strict=True):
        assert f'pip install "vitzoo[{extra}]"' in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_rooms_are_attributes():
    """Each in a process of its own in which nothing else was imported; without its extra a room says which one that is."""
    rooms = {path.stem if path.is_file() else path.name for path in ROOT.iterdir()
             if (path.suffix == '.py' or (path / '__init__.py').is_file()) and not path.name.startswith('_')}
    assert {'mm', 'dense', 'export'} < rooms
    code = '''
import json, sys, vitzoo
loaded = [name for name in %r if 'vitzoo.' + name in sys.modules]
kinds = {name: getattr(vitzoo, name).__name__ for name in %r}
print(json.dumps([loaded, kinds, sorted(set(%r) - set(dir(vitzoo)))]))
'''
    loaded, kinds, unlisted = run(code % ((sorted(rooms),) * 3), block=False)
    assert not {'mm', 'dense', 'export', 'viz', 'datasets', 'profiling'} & {*loaded}
    assert kinds == {name: f'vitzoo.{name}' for name in rooms} and unlisted == []
    message, members = run('''
import inspect, json, vitzoo
try:
    vitzoo.mm
except AttributeError as e:
    print(json.dumps([str(e), [name for name, value in inspect.getmembers(vitzoo)]]))
''')
    assert 'pip install "vitzoo[mm]"' in message and 'mm' not in members and 'dense' in members


def test_public_names():
    assert set(vitzoo.__all__) <= set(dir(vitzoo))
    for name in vitzoo.__all__:
        assert getattr(vitzoo, name) is not None
    with pytest.raises(AttributeError, match="module 'vitzoo' has no attribute 'no_such_name'"):
        vitzoo.no_such_name  # noqa: B018
    with pytest.raises(ImportError):
        from vitzoo import no_such_name  # noqa: F401


def test_nothing_points_against_the_arrows():
    """models import torch and timm alone; only the bridge imports the bridge."""
    for path in ROOT.rglob('*.py'):
        room = path.relative_to(ROOT).parts[0]
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip().startswith(('import ', 'from '))]
        if room in ('models', 'layers'):
            assert not [line for line in lines if 'vitzoo' in line or 'rich' in line], path
        if room != 'mm':
            assert not [line for line in lines if 'vitzoo.mm' in line or 'from .mm' in line], path
        assert not [line for line in lines if 'vitzoo_cli' in line] or path.name == '__main__.py', path


@pytest.fixture
def packaging(monkeypatch):
    """What setup.py says."""
    setuptools = pytest.importorskip('setuptools')
    arguments = {}
    monkeypatch.setattr(setuptools, 'setup', lambda **given: arguments.update(given))
    monkeypatch.chdir(ROOT.parent)
    runpy.run_path('setup.py')
    return arguments


@pytest.mark.parametrize('python, version', [('3.10', '1.23.2'), ('3.11', '1.31.1'), ('3.14', '1.31.1')])
def test_onnx_has_a_runtime_for_every_python(python, version, packaging):
    """1.23.2 is the last with wheels for Python 3.10."""
    requirements = pytest.importorskip('packaging.requirements')
    found = [requirements.Requirement(line) for line in packaging['extras_require']['onnx']]
    asked = [r for r in found if r.name == 'onnxruntime' and (r.marker is None or r.marker.evaluate({'python_version': python}))]
    assert len(asked) == 1 and version in asked[0].specifier


def test_every_package_is_installed(packaging):
    arguments = packaging
    assert set(arguments['packages']) == {'.'.join(path.parent.parts) for path in Path().glob('vitzoo*/**/__init__.py')}
