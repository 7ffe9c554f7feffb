"""Train what a config describes, with mmengine's own output: python tools/train.py CONFIG is `vitzoo train CONFIG --verbose`."""
import sys

from vitzoo_cli import main

if __name__ == '__main__':
    sys.exit(main(['train', '--verbose', *sys.argv[1:]]))
