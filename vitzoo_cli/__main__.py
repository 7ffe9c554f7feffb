"""`python -m vitzoo_cli`."""
import sys

from . import main

sys.exit(main())
