import os

os.environ['OMP_NUM_THREADS'] = '1'  # before torch is imported, here and in processes that tests start: the tests themselves run side by side

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True)
def _deterministic():
    torch.manual_seed(0)
