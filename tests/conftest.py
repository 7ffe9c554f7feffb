import pytest
import torch


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
