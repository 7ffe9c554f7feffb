"""Metadata, pictures and manifests as nobody would write them: each is read or refused by one line, and nothing is left behind."""
import contextlib
import io
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from vitzoo_cli import main

hypothesis = pytest.importorskip('hypothesis')
st = hypothesis.strategies

TEXT = st.text(max_size=20)
NUMBERS = st.one_of(st.integers(), st.integers(-3, 300), st.floats(), st.booleans())
JSON = st.recursive(st.none() | NUMBERS | TEXT, max_leaves=8,
                    extend=lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=3))


def counts(quick, thorough):
    return pytest.mark.parametrize('count', [quick, pytest.param(thorough, marks=pytest.mark.slow)], ids=['quick', 'thorough'])


def try_all(count, check, *strategies):
    """Call `check` with so many examples, in `make test` always the same."""
    settings = hypothesis.settings(max_examples=count, deadline=None, database=None, derandomize=count < 100,
                                   suppress_health_check=list(hypothesis.HealthCheck))
    settings(hypothesis.given(*strategies)(check))()


def run(command):
    """Status, stdout, stderr of a command that must not raise and must not say much."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*map(str, command), '--json'])
    out, err = out.getvalue(), err.getvalue()
    assert all(line.startswith('vitzoo: ') and len(line) < 1200 and line.isprintable() for line in err.splitlines()), err
    if status != 2:
        json.loads(out, parse_constant=pytest.fail)
    else:
        assert out == '' and err.count('\n') == 1
    return status, out, err


@counts(20, 2000)
def test_metadata(count, tiny_onnx, images, tmp_path):
    onnx = pytest.importorskip('onnx')
    tasks = {task: onnx.load(tiny_onnx(task=task)) for task in ('classification', 'features', 'segmentation')}
    path, out, picture = tmp_path / 'x.onnx', tmp_path / 'out', images / 'red.png'
    written = {task: {p.key: p.value for p in proto.metadata_props} for task, proto in tasks.items()}
    right = [json.loads(value) for value in written['classification'].values()]
    keys = st.sampled_from([*written['classification'], 'score_threshold', 'weights', 'extra'])
    # near what is right as well, where the mistakes are that are easily overlooked
    near = st.one_of(JSON, st.sampled_from([*right, .5, 'detection', [3, 24, 24.], [24, 24], [0, 0, 0], [1e-30] * 3, ['a', 'b'],
                                            ['\0', '\x1b', '\n' * 999], '', 'nearest', 1e-5, 9.99, 3]))
    raw = st.one_of(near.map(lambda value: json.dumps(value)), TEXT.filter(lambda text: '\0' not in text), st.just('[' * 5000))

    def check(task, changes, dropped):
        values = {key: value.encode('utf-8', 'replace').decode() for key, value in {**written[task], **changes}.items() if key != dropped}
        onnx.helper.set_model_props(tasks[task], values)
        path.write_bytes(tasks[task].SerializeToString())
        status, _, err = run(['predict', picture, '--onnx', path, '--out', out])
        assert status in (0, 1, 2) and (status != 2 or not out.exists())
        if out.exists():
            assert set(os.listdir(out)) <= {'red.png', 'red.labels.png', 'predictions.json'}
            shutil.rmtree(out)

    try_all(count, check, st.sampled_from([*tasks]), st.dictionaries(keys, raw, min_size=1, max_size=2), st.none() | keys)


def encodings():
    """Pictures as bytes, by suffix, in the formats and modes that are read."""
    rng = np.random.RandomState(0)
    colour, deep = rng.randint(0, 256, (9, 11, 3), np.uint8), rng.randint(0, 2 ** 16, (9, 11)).astype(np.uint16)
    colour, deep, floats = (Image.fromarray(values) for values in (colour, deep, (deep / 65535).astype(np.float32)))
    pictures = {'.png': [colour, deep, colour.convert('P')], '.tif': [colour, deep, floats],
                '.jpg': [colour, colour.convert('CMYK')], '.bmp': [colour], '.ppm': [colour], '.webp': [colour]}
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix, variants in pictures.items():
        for picture in variants:
            buffer = io.BytesIO()
            options = {'exif': exif} if suffix in ('.png', '.jpg', '.webp') else {}
            picture.save(buffer, Image.registered_extensions()[suffix], **options)
            yield suffix, buffer.getvalue()


@counts(80, 3500)
def test_picture_bytes(count, tiny_onnx, tmp_path):
    model, out, folder = tiny_onnx(), tmp_path / 'out', tmp_path / 'pictures'
    folder.mkdir()
    edit = st.tuples(st.integers(0, 600), st.integers(0, 8), st.binary(max_size=8))  # at this byte, so many become these

    def check(encoding, edits, length):
        suffix, data = encoding
        for start, old, new in edits:
            data = data[:start] + new + data[start + old:]
        path = folder / f'x{suffix}'
        path.write_bytes(data[:length])
        status, text, _ = run(['predict', folder, '--onnx', model, '--out', out])
        assert status in (0, 1)
        report = json.loads(text)
        assert len(report['images']) + len(report['failed']) == 1 and all('\n' not in f['error'] for f in report['failed'])
        assert set(os.listdir(out)) == {'predictions.json', *(['x.png'] if status == 0 else [])}
        path.unlink()
        shutil.rmtree(out)

    try_all(count, check, st.sampled_from([*encodings()]), st.lists(edit, max_size=4), st.none() | st.integers(0, 600))


@counts(80, 3000)
def test_manifests(count, tmp_path):
    pytest.importorskip('sklearn')
    from vitzoo.datasets import digit_scenes as ds
    from vitzoo.datasets.digit_scenes.build import _flaw
    from vitzoo.datasets.digit_scenes.parts import MANIFEST, WRITERS
    data = ds.build(tmp_path, 'micro', parts=['detection'], progress=False, det_train=1, val=10)
    folder, part = data.root / 'detection', WRITERS['detection']
    original = (folder / MANIFEST).read_bytes()
    manifest = json.loads(original)
    specification = {key: manifest[key] for key in ('name', 'version', 'preset', 'seed', 'part')}
    assert _flaw(folder, specification, part) is None
    of_bytes = st.tuples(st.integers(0, len(original)), st.integers(0, 8), st.binary(max_size=8)).map(
        lambda edit: original[:edit[0]] + edit[2] + original[sum(edit[:2]):])
    of_values = st.dictionaries(st.sampled_from([*manifest]), JSON, min_size=1, max_size=2).map(
        lambda changes: json.dumps({**manifest, **changes}).encode())
    consistent = st.dictionaries(st.sampled_from(['files', 'objects', 'fingerprint']), JSON, min_size=1, max_size=2).map(
        lambda changes: _with_checksum({**manifest, **changes}))

    def check(content):
        (folder / MANIFEST).write_bytes(content)
        flaw = _flaw(folder, specification, part)
        assert isinstance(flaw, str) and flaw.isprintable() or json.loads(content)['files'] == manifest['files']

    try_all(count, check, st.one_of(of_bytes, of_values, consistent, JSON.map(lambda value: json.dumps(value).encode())))


def _with_checksum(manifest):
    from vitzoo.datasets.digit_scenes.parts import _checksum
    manifest = {key: value for key, value in manifest.items() if key != 'checksum'}
    return json.dumps({**manifest, 'checksum': _checksum(manifest)}).encode()
