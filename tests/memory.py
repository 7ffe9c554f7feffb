"""How much memory something took at its peak, which Linux tells."""
import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest


def _status(key):
    return next(int(line.split()[1]) * 1024 for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(key))


@contextlib.contextmanager
def measured():
    """`.peak` is what was resident at most, in bytes above what was before. Skips the test elsewhere."""
    try:
        Path('/proc/self/clear_refs').write_text('5')
        before = _status('VmRSS')
    except OSError:
        pytest.skip('the peak of memory is read from /proc')
    result = SimpleNamespace(peak=0)
    yield result
    result.peak = _status('VmHWM') - before
