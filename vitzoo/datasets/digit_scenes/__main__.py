"""`python -m vitzoo.datasets.digit_scenes`."""
import sys

from .build import main

sys.exit(main())
