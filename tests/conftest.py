import os

os.environ['OMP_NUM_THREADS'] = '1'  # before torch is imported, here and in what tests start: the tests run side by side themselves

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True)
def _deterministic():
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """A few digit scenes, where the shipped configs find them."""
    pytest.importorskip('sklearn')
    from vitzoo.datasets import digit_scenes
    root = tmp_path_factory.mktemp('digits')
    digit_scenes.build(root, preset='micro', progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('DIGIT_SCENES', str(root))
        yield root
