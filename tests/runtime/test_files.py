"""Files are written whole or not at all."""
import json

import pytest

from vitzoo_runtime.files import replacing, write_json


def test_a_file_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / 'x.json'
    write_json(path, {'a': [1, 'é']})
    with pytest.raises(TypeError):
        write_json(path, {'a': object()})
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text('half of')
        raise KeyboardInterrupt
    assert json.loads(path.read_text(encoding='utf-8')) == {'a': [1, 'é']}
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_to_write_to_keeps_folder_and_suffix(tmp_path):
    """Libraries choose formats by the suffix, and only within a folder is a renaming sure to be all or nothing."""
    with replacing(tmp_path / 'x.png') as temporary:
        assert temporary.suffix == '.png' and temporary.parent == tmp_path and temporary.name != 'x.png'
        temporary.write_bytes(b'1')
    assert (tmp_path / 'x.png').read_bytes() == b'1'
