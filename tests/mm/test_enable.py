"""The start-up file, tried in a virtual environment of its own that sees the installed packages."""
import os
import subprocess
import sys
import sysconfig
import venv

import pytest

pytest.importorskip('mmcv')

from vitzoo.mm.enable import disable, enable, main  # noqa: E402
from vitzoo.mm.ops import STAND_IN  # noqa: E402


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
    """(python, its site-packages), with the packages of this Python behind it."""
    folder = tmp_path_factory.mktemp('venv')
    venv.create(folder, with_pip=False)
    site = sysconfig.get_path('purelib', 'venv', {'base': str(folder)})
    with open(os.path.join(site, 'installed.pth'), 'w') as f:
        f.write(sysconfig.get_path('purelib') + '\n')
    scripts = sysconfig.get_path('scripts', 'venv', {'base': str(folder)})
    return os.path.join(scripts, os.path.basename(sys.executable)), site


def run(python, code):
    # isolated: no PYTHONPATH, no current folder; vitzoo itself need not be found
    return subprocess.run([python, '-I', '-W', 'ignore', '-c', code], capture_output=True, text=True)


def test_enabled_python_imports_mmdet_and_pays_nothing(environment):
    pytest.importorskip('mmdet')
    python, site = environment
    enable(site)
    assert sorted(f for f in os.listdir(site) if 'vitzoo' in f) == ['vitzoo_mmcv_ext.pth']
    assert len(open(enable(site)).read().splitlines()) == 2  # a second time changes nothing
    result = run(python, 'import sys; assert not {"torch", "vitzoo"} & set(sys.modules); import mmdet.apis')
    assert result.returncode == 0, result.stderr

    assert str(disable(site)) == os.path.join(site, 'vitzoo_mmcv_ext.pth') and disable(site) is None
    assert 'VitzooMmcvExtFinder' not in run(python, 'import sys; print(sys.meta_path)').stdout


def test_enabled_python_reads_configs_that_inherit_from_ours(environment, tmp_path):
    """As mmdet's own tools do, before anything of ours is imported."""
    pytest.importorskip('mmdet')
    python, site = environment
    (tmp_path / 'mine.py').write_text("_base_ = 'vitzoo::detection/mask-rcnn_svit_micro_digits.py'\n")
    with open(os.path.join(site, 'vitzoo.pth'), 'w') as f:  # an editable install, say
        f.write(str(STAND_IN.parents[3]) + '\n')
    code = f"""
import sys
from mmengine.config import Config
assert not any(name.startswith('vitzoo') for name in sys.modules)
cfg = Config.fromfile({str(tmp_path / 'mine.py')!r})
print(cfg.model.backbone.model_name, cfg.train_dataloader.dataset.get('_scope_'))
"""
    enable(site)
    result = run(python, code)
    disable(site)
    assert result.stdout.splitlines()[-1:] == ['svit_micro None'], result.stderr


def test_activate_sees_the_start_up_file(environment):
    python, site = environment
    enable(site)
    result = run(python, f'''
import sys
from importlib import util
spec = util.spec_from_file_location('ops', {str(STAND_IN.with_name('__init__.py'))!r})
ops = util.module_from_spec(spec)
spec.loader.exec_module(ops)
count = len(sys.meta_path)
assert ops.backend() == ops.activate() != 'none' and len(sys.meta_path) == count, ops.backend()
''')
    disable(site)
    assert result.returncode == 0, result.stderr


def test_a_start_up_file_outlives_its_vitzoo(environment, monkeypatch, tmp_path):
    """Odd characters in the path, and a stand-in that is gone: Python starts as ever and finds no `mmcv._ext`."""
    python, site = environment
    monkeypatch.setattr('vitzoo.mm.enable.STAND_IN', tmp_path / "qu'ote and \N{LATIN SMALL LETTER O WITH DIAERESIS}" / '_ext.py')
    enable(site)
    result = run(python, 'import sys; f = sys.meta_path[-1]; print(f.__name__, f.find_spec("mmcv._ext"), f.find_spec("os"))')
    assert (result.stdout.split(), result.stderr) == (['VitzooMmcvExtFinder', 'None', 'None'], '')
    (tmp_path / "qu'ote and \N{LATIN SMALL LETTER O WITH DIAERESIS}").mkdir()
    (tmp_path / "qu'ote and \N{LATIN SMALL LETTER O WITH DIAERESIS}" / '_ext.py').touch()
    assert 'ModuleSpec' in run(python, 'import sys; print(sys.meta_path[-1].find_spec("mmcv._ext"))').stdout
    disable(site)


def test_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr('sysconfig.get_path', lambda name: str(tmp_path))
    main([])
    assert (tmp_path / 'vitzoo_mmcv_ext.pth').exists() and f'wrote {tmp_path}' in capsys.readouterr().out
    main(['--disable'])
    assert not list(tmp_path.iterdir()) and f'removed {tmp_path}' in capsys.readouterr().out
    main(['--disable'])
    assert 'nothing to remove' in capsys.readouterr().out


def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match='cannot write .*missing.*expected a site-packages folder'):
        enable(tmp_path / 'missing')
    (tmp_path / 'vitzoo_mmcv_ext.pth').mkdir()
    for act in (enable, disable):
        with pytest.raises(ValueError, match='cannot (write|remove)'):
            act(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['vitzoo_mmcv_ext.pth']
