"""How much memory something takes at its peak, which Linux tells."""
import ctypes
import gc
from pathlib import Path


def start_of_peak() -> int | None:
    """Bytes that are resident now; what is freed is given back first, so that it cannot be used again unseen. None where nobody tells."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')  # forget the peak so far
        return _status('VmRSS')
    except (OSError, AttributeError, TypeError):
        return None


def peak_since(start: int | None) -> float | None:
    """Megabytes that were resident at most since `start_of_peak`, beyond what was there then."""
    return None if start is None else max(0, _status('VmHWM') - start) / 1e6


def _status(key: str) -> int:
    lines = Path('/proc/self/status').read_text(encoding='utf-8').splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
