"""Run mmcv's own operator tests over vitzoo's stand-in for its compiled operators, on the CPU.

    python tools/test_mmcv_ops.py [--source ARCHIVE_OR_CHECKOUT] [--json]

The tests are in mmcv's repository only, not in its packages on PyPI: they are taken from the archive of its tag v2.1.0, downloaded from
GitHub unless given, checked by hash, unpacked to a temporary folder and gone afterwards.

They run twice: as they are, where every case that asks for CUDA is skipped or returns at once; and with those cases sent to the CPU,
as RoIPool, focal loss, soft-NMS and multi-scale deformable attention are tested on CUDA alone. Exit status 1 if any fails.
"""
import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

URL = 'https://github.com/open-mmlab/mmcv/archive/refs/tags/v2.1.0.tar.gz'
TESTS = [f'tests/test_ops/test_{name}.py' for name in (
    'bbox', 'deform_conv', 'focal_loss', 'info', 'modulated_deform_conv', 'ms_deformable_attn', 'nms', 'roi_align', 'roi_pool', 'saconv')]
FILES = [*TESTS, 'tests/data/batched_nms_data.pkl']
SHA256 = 'e821bce8a136d6f4660d20682ad747ca17f800cf65ad876c58dd515964e1d72b'  # of all FILES, one after another
# the cases written for CUDA, on the CPU
REDIRECT = [
    (r'torch\.cuda\.is_available\(\)', 'True'), (r'not IS_CUDA_AVAILABLE', 'False'), (r'\.cuda\(\)', '.cpu()'), (r"'cuda(:0)?'", "'cpu'"),
    (r'from torch\.cuda\.amp import autocast',
     "import functools; autocast = functools.partial(torch.autocast, 'cpu', dtype=torch.half)"),
]
# softmax focal loss is not among the operators that the stand-in has
RUN = '''
import sys, pytest
from vitzoo.mm.ops import activate
assert activate() == 'stand-in', 'a compiled mmcv is installed: there is no stand-in to test'
sys.exit(pytest.main([*sys.argv[1:], '-q', '-p', 'no:cacheprovider', '-k', 'not softmax', '-W', 'ignore']))
'''


def read(source: str | None) -> dict[str, bytes]:
    """The FILES by name, from a checkout, an archive, or the network."""
    if source and Path(source).is_dir():
        found = {name: (Path(source) / name).read_bytes() for name in FILES}
    else:
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(source or Path(folder) / 'mmcv.tar.gz')
            if not source:
                with urllib.request.urlopen(URL, timeout=60) as response:
                    archive.write_bytes(response.read())
            with tarfile.open(archive) as tar:
                found = {name: tar.extractfile(member).read() for member in tar if (name := member.name.partition('/')[2]) in FILES}
    if missing := sorted(set(FILES) - set(found)):
        raise ValueError(f'{source or URL} lacks {", ".join(missing)}; expected the repository of mmcv at tag v2.1.0')
    digest = hashlib.sha256(b''.join(found[name] for name in FILES)).hexdigest()
    if digest != SHA256:
        raise ValueError(f'the tests in {source or URL} have SHA-256 {digest}; expected {SHA256}, those of mmcv at tag v2.1.0')
    return found


def run(files: dict[str, bytes], redirect: bool) -> dict[str, Counter]:
    """Unpack, run, and count 'passed', 'skipped', 'failed' by test file."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            if redirect and name in TESTS:
                text = data.decode()
                for pattern, replacement in REDIRECT:
                    text = re.sub(pattern, replacement, text)
                data = text.encode()
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        root = str(Path(__file__).resolve().parents[1])
        env = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')]))}
        done = subprocess.run([sys.executable, '-c', RUN, *TESTS, '--junitxml=report.xml'], cwd=folder, env=env, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        report = Path(folder) / 'report.xml'
        if done.returncode:
            print(done.stdout, file=sys.stderr)
        if done.returncode > 1 or not report.exists():  # 1 is what pytest returns if tests failed
            raise RuntimeError(f'the tests did not run to the end (status {done.returncode})')
        counts = {Path(name).stem: Counter() for name in TESTS}
        for case in ET.parse(report).iter('testcase'):
            outcome = {'failure': 'failed', 'error': 'failed', 'skipped': 'skipped'}.get(next((e.tag for e in case), None), 'passed')
            counts[case.get('classname').split('.')[2]][outcome] += 1
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--source', help=f'checkout or .tar.gz of mmcv at tag v2.1.0 (default: download {URL})')
    parser.add_argument('--json', action='store_true', help='counts as JSON')
    args = parser.parse_args()
    try:
        files = read(args.source)
    except (OSError, tarfile.TarError, ValueError) as e:
        parser.exit(2, f'error: {e}\n')
    with Console(stderr=True).status('running the tests twice, a few minutes'):
        try:
            passes = {'as they are': run(files, redirect=False), 'CUDA cases on the CPU': run(files, redirect=True)}
        except RuntimeError as e:
            parser.exit(2, f'error: {e}\n')
    if args.json:
        print(json.dumps(passes))
    else:
        table = Table(title='operator tests of mmcv 2.1.0 over the stand-in: passed / skipped / failed')
        table.add_column('file')
        for title in passes:
            table.add_column(title, justify='right')
        totals = {title: sum(counts.values(), Counter()) for title, counts in passes.items()}
        for stem in [Path(name).stem for name in TESTS] + ['total']:
            cells = [totals[t] if stem == 'total' else counts[stem] for t, counts in passes.items()]
            table.add_row(stem, *(f'{c["passed"]} / {c["skipped"]} / {c["failed"]}' for c in cells))
        Console().print(table)
    return int(any(c['failed'] for counts in passes.values() for c in counts.values()))


if __name__ == '__main__':
    sys.exit(main())
