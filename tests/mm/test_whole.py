"""A file of a backbone or classifier where that of a whole detector or segmentor is needed: refused by every command, with one line."""
import subprocess
import sys
from pathlib import Path

import pytest
import samples
import timm
import torch
import zoo
from PIL import Image

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
from vitzoo.mm import check_load_from, config_path, load_whole, setup  # noqa: E402
from vitzoo_cli import main  # noqa: E402

ROOT = Path(__file__).parents[2]
CONFIGS = ['detection/retinanet_svit_micro_digits', 'segmentation/fpn_svit_micro_digits']
PARTS = {
    'classifier': lambda model: timm.create_model('svit_micro').state_dict(),
    'backbone': lambda model: model.backbone.state_dict(),
    'backbone of a detector': lambda model: {k: v for k, v in model.state_dict().items() if k.startswith('backbone.')},
    'under data parallelism': lambda model: {f'module.{k}': v for k, v in model.state_dict().items() if k.startswith('backbone.')},
}


@pytest.fixture(scope='module', params=CONFIGS)
def built(request):
    cfg = setup(config_path(request.param))
    return request.param, cfg, samples.build(cfg)


@pytest.mark.parametrize('part', PARTS)
def test_a_part_is_not_taken_for_the_whole(part, built, tmp_path, capsys):
    name, cfg, model = built
    file = tmp_path / 'part.pth'
    torch.save({'state_dict': PARTS[part](model)}, file)
    with pytest.raises(ValueError, match='init_cfg'):
        load_whole(model, file)
    cfg.load_from = str(file)
    with pytest.raises(ValueError, match='init_cfg') as error:
        check_load_from(cfg)
    assert 'part.pth' in str(error.value) and len(str(error.value)) < 400
    if part != 'backbone':  # for each of the commands is slow
        return
    Image.new('RGB', (64, 64)).save(tmp_path / 'x.png')
    config = ['--config', str(config_path(name))]
    for command in (['convert', str(file), *config, '--out', str(tmp_path / 'x.pth')],
                    ['predict', str(tmp_path / 'x.png'), *config, '--checkpoint', str(file), '--out', str(tmp_path / 'out')],
                    ['export', *config, '--checkpoint', str(file), '--out', str(tmp_path / 'x.onnx'), '--size', '64']):
        capsys.readouterr()
        assert main(command) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith('vitzoo: ') and 'part.pth' in last and len(last) < 600
    assert sorted(p.name for p in tmp_path.iterdir()) == ['part.pth', 'x.png']


def test_whole_files_are_taken(built, tmp_path):
    _, cfg, model = built
    state = model.state_dict()
    assert load_whole(model, {k: v for k, v in state.items() if not k.endswith('num_batches_tracked')}).loaded
    for change in lambda k: k, lambda k: f'module.{k}':
        torch.save({'state_dict': {change(k): v for k, v in state.items()}}, tmp_path / 'whole.pth')
        cfg.load_from = str(tmp_path / 'whole.pth')
        check_load_from(cfg)
    for unread in dict(load_from=None), dict(load_from='none.pth', resume=True):
        cfg.merge_from_dict(unread)
        check_load_from(cfg)


def test_one_entry_too_few(built):
    _, _, model = built
    state = model.state_dict()
    lacking = next(k for k in state if 'head' in k and k.endswith('bias'))
    with pytest.raises(ValueError, match=lacking):
        load_whole(model, {k: v for k, v in state.items() if k != lacking})


@pytest.mark.parametrize('tool', zoo.first_quick(['train', 'test']))
def test_tools_refuse(tool, tmp_path):
    torch.save(timm.create_model('svit_micro').state_dict(), tmp_path / 'classifier.pth')
    options = ['--cfg-options', f'load_from={tmp_path / "classifier.pth"}'] if tool == 'train' else [tmp_path / 'classifier.pth']
    done = subprocess.run([sys.executable, ROOT / 'tools' / f'{tool}.py', config_path(CONFIGS[0]), *options,
                           '--work-dir', tmp_path / 'work'], capture_output=True, text=True, cwd=ROOT)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and last.startswith('vitzoo: load_from=') and 'init_cfg' in last and 'Traceback' not in done.stderr
    assert not (tmp_path / 'work').exists()
