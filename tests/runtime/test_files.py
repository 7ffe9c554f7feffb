"""Files are written whole or not at all."""
import json
import os

import pytest

from vitzoo_runtime.files import MARK, is_ours, refuse_to_replace, replacing, temporary_name, write_json


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


def test_the_name_to_write_to_is_hidden_and_fits_where_the_name_fits(tmp_path):
    longest = tmp_path / ('x' * 251 + '.png')
    with replacing(longest) as temporary:
        assert temporary.name.startswith('.')
        temporary.write_bytes(b'1')
    assert os.listdir(tmp_path) == [longest.name]
    assert len(temporary_name(tmp_path / f'x.{"y" * 250}').name) < 100


def test_numbers_that_json_does_not_know_become_null(tmp_path):
    write_json(tmp_path / 'x.json', {'a': [float('nan'), 1.5], 'b': {'c': float('-inf')}, 'd': (2, float('inf'))})
    assert json.loads((tmp_path / 'x.json').read_text(), parse_constant=pytest.fail) == {'a': [None, 1.5], 'b': {'c': None}, 'd': [2, None]}


def test_what_is_not_ours_or_an_input_is_not_replaced(tmp_path):
    mine, theirs, new = (tmp_path / name for name in ('mine.json', 'theirs.json', 'new.json'))
    write_json(mine, {'comment': MARK})
    theirs.write_text('{}')
    assert is_ours(mine) and not is_ours(theirs) and not is_ours(new) and not is_ours(tmp_path)
    refuse_to_replace([mine, new, tmp_path])
    with pytest.raises(ValueError, match='theirs.json exists'):
        refuse_to_replace([mine, theirs])
    (tmp_path / 'link').symlink_to(mine)
    with pytest.raises(ValueError, match='link is an input'):
        refuse_to_replace([tmp_path / 'link'], [mine])
    (tmp_path / 'nowhere').symlink_to(new)
    with pytest.raises(ValueError, match='nowhere exists'):
        refuse_to_replace([tmp_path / 'nowhere'])
    refuse_to_replace([mine, theirs, tmp_path / 'link', tmp_path / 'nowhere'], [mine], force=True)
    with pytest.raises(ValueError, match='no ordinary file'):
        refuse_to_replace([os.devnull], force=True)
