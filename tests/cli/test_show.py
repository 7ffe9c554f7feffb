"""`vitzoo show`: what it draws, what it says, what it refuses before it writes anything."""
import json
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import vitzoo
from vitzoo_cli import main
from vitzoo_runtime.files import is_ours

TINY = 'test_vit'  # timm's own, for tests: 160x160 and 6 blocks


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (6, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize((300, 240)).save(tmp_path / 'photo.jpg')
    return tmp_path / 'photo.jpg'


def show(capsys, *arguments):
    status = main(['show', *map(str, arguments), '--json'])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else None, captured.err


def test_families(photo, tmp_path, capsys):
    out = tmp_path / 'svit.png'
    status, report, err = show(capsys, 'svit_micro', photo, '--out', out)
    assert status == 0 and 'weights are random' in err and err.count('\n') == 1
    assert report['weights'] == 'random' and report['input_size'] == [3, 224, 224] and report['picture'] == str(out)
    assert report['layers'][0] == {'layer': 'stages.0.blocks.0.attn', 'kind': 'groups', 'what': 'super tokens', 'total': 49,
                                   'size': [56, 56], 'stride': [4, 4], 'dropped': 0}
    width, height = Image.open(out).size
    assert width > 3 * 224 and height > 224 and is_ours(out)


def test_reduced(photo, tmp_path, capsys):
    out = tmp_path / 'evit.png'
    options = ['--reduce', 'evit:locations=(1,),keep_rate=0.5,fuse=False']
    status, report, _ = show(capsys, TINY, photo, '--out', out, *options)
    patches = np.prod(report['layers'][0]['size'])
    assert status == 0 and report['reduce'] == options[1]
    assert [(layer['layer'], layer['dropped']) for layer in report['layers']] == [('blocks.0', 0), ('blocks.1', patches // 2)]
    assert all(layer['total'] + layer['dropped'] == patches for layer in report['layers'])
    status, report, _ = show(capsys, TINY, photo, '--out', out, *options, '--layers', 'blocks.1', 'blocks.[3-9]')
    assert status == 0 and [layer['layer'] for layer in report['layers']] == [f'blocks.{i}' for i in (1, 3, 4, 5)]


def test_what_is_drawn_is_what_the_model_sees(photo, tmp_path, capsys):
    """Weights of a file, and timm's transform: the same maps by hand."""
    torch.manual_seed(1)
    model = timm.create_model('svit_micro', num_classes=1000).eval()
    torch.save(model.state_dict(), tmp_path / 'w.pth')
    data = timm.data.resolve_model_data_config(model)
    image = timm.data.create_transform(**data, is_training=False)(Image.open(photo).convert('RGB'))
    expected = vitzoo.token_map(model, image)
    status, report, err = show(capsys, 'svit_micro', photo, '--checkpoint', tmp_path / 'w.pth', '--out', tmp_path / 'x.png')
    assert status == 0 and report['weights'] == 'loaded' and err == ''
    assert [layer['layer'] for layer in report['layers']] == [m.layer for m in expected]
    crop = Image.fromarray((image * torch.tensor(data['std'])[:, None, None] + torch.tensor(data['mean'])[:, None, None]).mul(255).round()
                           .byte().permute(1, 2, 0).numpy())
    drawn, again = Image.open(tmp_path / 'x.png').convert('RGB'), vitzoo.viz.draw_token_maps(crop, expected)
    assert drawn.size == again.size and np.abs(np.asarray(drawn, int) - np.asarray(again, int)).mean() < 1


def test_table_for_people(photo, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(['show', 'stvit_deit_micro', str(photo)]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ('blocks.2.pool', '14x14', 'semantic tokens', 'token_maps.png'))
    assert (tmp_path / 'token_maps.png').is_file()


def test_a_picture_of_ours_is_replaced_and_no_other_file(photo, tmp_path, capsys):
    out = tmp_path / 'x.png'
    assert show(capsys, 'svit_micro', photo, '--out', out)[0] == 0
    assert show(capsys, 'svit_micro', photo, '--out', out)[0] == 0
    Image.new('RGB', (4, 4)).save(out)
    before = out.read_bytes()
    assert show(capsys, 'svit_micro', photo, '--out', out)[0] == 2
    assert out.read_bytes() == before
    assert show(capsys, 'svit_micro', photo, '--out', out, '--force')[0] == 0
    assert out.read_bytes() != before and sorted(p.name for p in tmp_path.iterdir()) == ['photo.jpg', 'x.png']


@pytest.mark.parametrize('arguments, message', [
    (['svit_smal', 'photo.jpg'], 'did you mean svit_small'),
    (['svit_micro', 'none.jpg'], 'none.jpg: this image cannot be read (No such file or directory)'),
    (['svit_micro', 'notes.txt'], 'notes.txt: this image cannot be read (cannot identify image file'),
    (['svit_micro', 'photo.jpg', '--out', 'x.jpg'], 'ends in .png'),
    (['svit_micro', 'photo.jpg', '--out', 'none/x.png'], 'in a folder that exists'),
    (['svit_micro', 'photo.jpg', '--layers', 'blocks.*'], 'there are stages.0.blocks.0.attn, stages.1.blocks.0.attn'),
    (['svit_micro', 'photo.jpg', '--reduce', 'tome'], 'SViT: expected timm'),
    (['svit_micro', 'photo.jpg', '--checkpoint', 'none.pth'], 'none.pth'),
    ([TINY, 'photo.jpg'], 'has no token maps'),
    ([TINY, 'photo.jpg', '--reduce', 'nonsense'], "method 'nonsense': expected"),
    ([TINY, 'photo.jpg', '--reduce', 'tome:q=3'], "no option 'q'"),
    ([TINY, 'photo.jpg', '--reduce', 'tome:r'], 'METHOD:OPTION=VALUE'),
    ([TINY, 'photo.jpg', '--reduce', 'tome:r=-3'], 'r=-3'),
    ([TINY, 'photo.jpg', '--reduce', 'evit:locations=(99,)'], 'locations=(99,)'),
])
def test_bad_arguments(photo, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'notes.txt').write_text('no image')
    status, report, err = show(capsys, *arguments)
    lines = [line for line in err.splitlines() if 'weights are random' not in line]
    assert status == 2 and report is None and len(lines) == 1 and message in lines[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ['notes.txt', 'photo.jpg']


def test_help_says_what_can_be_shown(capsys):
    with pytest.raises(SystemExit):
        main(['show', '--help'])
    out = re.sub(r'\s+', ' ', capsys.readouterr().out)
    for text in ('MODEL IMAGE', 'SViT (super tokens)', 'BiFormer (regions that are attended to)', 'LookupViT (compressed tokens)',
                 'the weights are random', '--reduce METHOD[:OPTION=VALUE,...]', 'tome:r=8', '(default: token_maps.png)'):
        assert text in out
