"""Evaluate a checkpoint, with mmengine's own output: python tools/test.py CONFIG CHECKPOINT is `vitzoo test` with --verbose."""
import sys

from vitzoo_cli import main

if __name__ == '__main__':
    sys.exit(main(['test', '--verbose', *sys.argv[1:]]))
