"""Run timm's own model tests over our models.

    python tools/test_timm.py [--models PATTERN ...] [--source ARCHIVE] [--json]

timm's tests are in its source archive on PyPI: the archive of the installed version is downloaded unless given, and its model tests are
unpacked to a temporary folder that is gone afterwards. Exit status 1 if any of them fails or none was run.
"""
import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from contextlib import redirect_stdout
from fnmatch import fnmatch
from pathlib import Path

import pytest
import timm
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import vitzoo  # noqa: E402, F401  (registers the models)

FILES = ('tests/conftest.py', 'tests/test_models.py')

# what our models do not promise
NOT_APPLICABLE = {
    'test_model_forward_torchscript': 'torch.jit.script is deprecated; torch.compile and torch.export take the models',
    'test_model_forward_fx_torchscript': 'torch.jit.script is deprecated; torch.compile and torch.export take the models',
    'test_model_load_pretrained': 'downloads published weights; tests/models/test_stvit.py does the same with a small hub of its own',
    'test_model_features_pretrained': 'downloads published weights; tests/models/test_stvit.py does the same with a small hub of its own',
}

# timm tells models of tokens at one stride from pyramids by a list of name patterns, which ends up in its filters. This is one of them.
TIMM_COLUMNAR = 'deit*'


def download(folder: Path) -> Path:
    """The source archive of the installed timm."""
    command = f'pip download timm=={timm.__version__} --no-deps --no-binary timm --dest'.split()
    done = subprocess.run([sys.executable, '-m', *command, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    archive = next(folder.glob('timm-*.tar.gz'), None)
    if done.returncode or archive is None:
        raise RuntimeError(f'the source archive of timm {timm.__version__} could not be downloaded:\n{done.stdout}'
                           'Without a network give a copy of it as --source.')
    return archive


def unpack(archive: Path, folder: Path) -> Path:
    """Write the model tests alone to the folder, since the rest of timm must not shadow the installed package."""
    with tarfile.open(archive) as tar:
        found = {name: tar.extractfile(member).read() for member in tar if (name := member.name.partition('/')[2]) in FILES}
    if set(found) != set(FILES):
        raise ValueError(f'{archive} lacks {", ".join(sorted(set(FILES) - set(found)))}; expected the source archive of timm')
    for name, data in found.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return folder / 'tests' / 'test_models.py'


class OurModels:
    """pytest plugin: keeps the tests that take a model of ours, and counts their outcomes."""

    def __init__(self, names: set[str]):
        self.names = names
        self.outcomes = {}  # test -> Counter

    def pytest_collection_modifyitems(self, items):
        models = [str(item.callspec.params.get('model_name')) if hasattr(item, 'callspec') else '' for item in items]
        ours = [item for item, model in zip(items, models, strict=True) if model.split('.')[0] in self.names]
        for item in ours:
            counts = self.outcomes.setdefault(item.originalname, Counter())
            if item.originalname in NOT_APPLICABLE:
                counts['left out'] += 1
        items[:] = [item for item in ours if item.originalname not in NOT_APPLICABLE]

    def pytest_runtest_logreport(self, report):
        if report.when == 'call' or report.outcome != 'passed':
            name = report.nodeid.split('::')[-1].split('[')[0]
            self.outcomes[name][report.outcome] += 1


def is_columnar(name: str) -> bool:
    with torch.device('meta'):
        return timm.create_model(name).columnar


def offer(names: set[str]) -> None:
    """Make `timm.list_models` answer with these models, and let its lists of modules (of those that have intermediates) include ours."""
    list_models = timm.list_models
    columnar = [name for name in names if is_columnar(name)]

    def ours(filter='', module='', *args, exclude_filters='', **kwargs):
        filter, exclude_filters = ([*f, *columnar] if TIMM_COLUMNAR in f else f for f in (filter, exclude_filters))
        return [name for name in list_models(filter, '', *args, exclude_filters=exclude_filters, **kwargs) if name.split('.')[0] in names]

    timm.list_models = ours


def run(test_file: Path, names: set[str]) -> dict[str, Counter]:
    plugin = OurModels(names)
    offer(names)
    options = ['-q', '-p', 'no:cacheprovider', '-W', 'ignore', '--rootdir', str(test_file.parent), '-c', os.devnull, '--tb=short']
    with redirect_stdout(sys.stderr):
        status = pytest.main([str(test_file), *options], plugins=[plugin])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f'the tests did not run to the end ({status!r})')
    return plugin.outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--models', nargs='+', default=['*'], metavar='PATTERN', help='of our models (default: all)')
    parser.add_argument('--source', type=Path, help=f'timm-{timm.__version__}.tar.gz (default: download it)')
    parser.add_argument('--json', action='store_true', help='counts as JSON')
    args = parser.parse_args()
    names = {name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith('vitzoo.')}
    names = {name for name in names if any(fnmatch(name, pattern) for pattern in args.models)}
    if not names:
        parser.error(f'none of our models matches {" ".join(args.models)}')
    with tempfile.TemporaryDirectory() as folder:
        try:
            with Console(stderr=True).status(f'fetching the tests of timm {timm.__version__}'):
                test_file = unpack(args.source or download(Path(folder)), Path(folder))
            outcomes = run(test_file, names)
        except (OSError, tarfile.TarError, ValueError, RuntimeError) as e:
            parser.exit(2, f'error: {e}\n')
    total = sum(outcomes.values(), Counter())
    if args.json:
        print(json.dumps({'timm': timm.__version__, 'models': sorted(names), 'outcomes': outcomes, 'not_applicable': NOT_APPLICABLE}))
    else:
        columns = ('passed', 'failed', 'skipped', 'left out')
        table = Table(title=f"timm {timm.__version__}'s model tests over {len(names)} of ours")
        table.add_column('test', no_wrap=True)
        for column in columns:
            table.add_column(column, justify='right')
        for name, counts in outcomes.items():
            table.add_row(name, *(str(counts[c] or '') for c in columns))
        table.add_section()
        table.add_row('total', *(str(total[c]) for c in columns))
        Console().print(table)
        for name, reason in NOT_APPLICABLE.items():
            Console().print(f'{name} is left out: {reason}', style='dim')
    return int(total['failed'] > 0 or not total['passed'])


if __name__ == '__main__':
    sys.exit(main())
