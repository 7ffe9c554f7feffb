"""The progress bar of an export."""
import pytest
from torch import nn

from vitzoo.export import exporter, steps


def test_bar_moves_within_a_long_step_and_never_back():
    now = 0.
    bar = steps.Steps({'short': 1, 'long': 8, 'end': 1}, clock=lambda: now)
    seen = []
    for name, seconds in ('short', 2), ('long', 40), ('end', 1):  # much longer than expected
        bar.begin(name)
        for _ in range(20):
            seen.append(bar.fraction())
            now += seconds / 20
    assert seen == sorted(seen) and len(set(seen)) == len(seen) and seen[0] == 0 and seen[-1] < 1
    assert bar.fraction() < 1
    bar.finish()
    assert bar.fraction() == pytest.approx(1) and bar.seconds_left() == pytest.approx(0)


def test_bar_stands_where_counted_work_is():
    now = 0.
    bar = steps.Steps({'counted': 4, 'other': 4}, clock=lambda: now)
    bar.begin('counted')
    seen = []
    for done in range(5):
        bar.reach(done / 4)
        now += 10.
        seen.append(bar.fraction())
    assert seen == pytest.approx([0, 1 / 8, 2 / 8, 3 / 8, 4 / 8])
    bar.begin('other')
    assert bar.fraction() == pytest.approx(1 / 2)
    now += 50.
    assert 1 / 2 < bar.fraction() < 1


def test_what_is_left_follows_the_pace_of_what_is_done():
    now = 0.
    bar = steps.Steps({'a': 2, 'b': 4, 'c': 4}, clock=lambda: now)
    assert bar.seconds_left() == 10
    bar.begin('a')
    now = 6.  # three times slower
    bar.begin('b')
    assert bar.seconds_left() == pytest.approx(24)
    bar.begin('unexpected')
    assert 0 < bar.fraction() < 1


@pytest.mark.parametrize('opset', [17, 20])
def test_exporter_says_what_it_does(opset, tmp_path, monkeypatch, capsys):
    for module in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(module)
    begun, reached = [], []
    begin = steps.Steps.begin
    monkeypatch.setattr(steps.Steps, 'reach', lambda self, share: reached.append(share))
    monkeypatch.setattr(steps.Steps, 'begin', lambda self, name: (begun.append(name), begin(self, name)))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    exporter.export_onnx(model, tmp_path / 'model.onnx', 16, opset=opset, rounds=1, progress=True)
    assert capsys.readouterr().out == ''
    parts = ['trace'] if opset == 17 else ['trace', 'decompose', 'translate', 'optimise']
    assert list(dict.fromkeys(begun)) == ['run in PyTorch', *parts, 'check in ONNX Runtime', 'time']
    assert reached == [0, .25, .5, .75, 1]  # two runtimes, warmed up and timed once
    assert set(begun) <= set(steps.expected_seconds(3, rounds=1))
