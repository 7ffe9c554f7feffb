"""`vitzoo bench` and `vitzoo profile`: what they print and write, and how they refuse."""
import json

import pytest

from vitzoo_cli import main
from vitzoo_runtime.files import is_ours


def run(capsys, *arguments):
    status = main([*map(str, arguments), '--json'])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else None, captured.err


def test_bench_of_a_file(tiny_onnx, tmp_path, capsys):
    path = tiny_onnx()
    status, (found,), _ = run(capsys, 'bench', path, '--batches', 1, '--rounds', 1, '--csv', tmp_path / 'x.csv', '--cache', tmp_path / 'x')
    assert status == 0 and found['name'] == 'tiny' and found['runtime'] == 'onnxruntime' and found['size'] == [24, 24]
    assert found['macs'] == 9 and found['ms']['1'][0] > 0 and not found['error']
    assert is_ours(tmp_path / 'x.csv')
    status, found, err = run(capsys, 'bench', path, '--csv', path)
    assert status == 2 and found is None and 'is an input' in err


def test_bench_as_a_table(capsys):
    options = ['--runtimes', 'eager', '--batches', '1', '--rounds', '1', '--reduce', 'tome:r=1']
    assert main(['bench', 'test_vi[t]', '--size', '32', *options]) == 0
    out = capsys.readouterr().out
    assert 'test_vit tome:r=1' in out and 'ms, batch 1' in out and '32x32' in out


def test_profile_of_a_model(capsys):
    status, found, _ = run(capsys, 'profile', 'test_vit', '--size', 32, '--no-export', '--rounds', 1, '--depth', 1)
    assert status == 0 and [runtime['runtime'] for runtime in found['runtimes']] == ['PyTorch']
    assert found['macs'] == found['runtimes'][0]['macs'] and found['runtimes'][0]['modules'][0]['name'] == 'VisionTransformer'


def test_profile_of_a_file_as_tables(tiny_onnx, capsys):
    assert main(['profile', str(tiny_onnx()), '--rounds', '1']) == 0
    out = capsys.readouterr().out
    assert 'GlobalAveragePool' in out and 'matrix product' in out and 'ONNX Runtime' in out


@pytest.mark.parametrize('arguments, words', [
    (['bench', 'nonsense'], ['unknown model']),
    (['bench', 'nonsense*'], ['no registered model matches']),
    (['bench', '*'], ['models', 'at most 200']),
    (['bench', 'test_vit', '--runtimes', 'tensorrt'], ['tensorrt', 'eager']),
    (['bench', 'test_vit', '--runtimes', 'eager', '--precisions', 'int8'], ['eager goes with none']),
    (['bench', 'test_vit', '--rounds', '0'], ['rounds=0']),
    (['bench', 'test_vit', '--batches', '0'], ['batches']),
    (['bench', 'biformer_nchw_micro', '--size', '8'], ['8']),
    (['bench', 'test_vit', '--plot', 'x.jpg'], ['--plot x.jpg', '.png']),
    (['bench', 'there/is/none.onnx'], ['no such file']),
    (['bench', '--config', 'there/is/none.py', '--size', '64'], ['no such file']),
    (['bench', '--config', 'x.py'], ['--size']),
    (['bench', 'test_vit', '--config', 'x.py', '--size', '64'], ['--config goes with']),
    (['profile', 'nonsense'], ['unknown model']),
    (['profile', 'test_vit', '--rounds', '0'], ['--rounds 0']),
    (['profile', 'there/is/none.onnx'], ['no such file']),
])
def test_bad_arguments(arguments, words, capsys):
    status, report, err = run(capsys, *arguments)
    assert status == 2 and report is None and 'Traceback' not in err and all(word in err for word in words)


@pytest.mark.slow
@pytest.mark.parametrize('config', ['detection/mask-rcnn_svit_micro_digits', 'segmentation/fpn_svit_micro_digits'])
def test_bench_of_a_whole_network(config, capsys):
    pytest.importorskip('mmdet')
    pytest.importorskip('mmseg')
    import vitzoo.mm
    status, found, _ = run(capsys, 'bench', '--config', vitzoo.mm.config_path(config), '--size', '128x160', '--rounds', 1)
    ms = {name: value['median'] for name, value in found['ms'].items()}
    assert status == 0 and ms['whole'] == pytest.approx(ms['backbone'] + ms['neck'] + ms['head'], rel=0.01)
