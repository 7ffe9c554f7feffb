"""Sharded training in one process: the same function of the same weights, for all families. Two processes: test_training.py."""
import pytest
import timm
import torch
import zoo

pytest.importorskip('mmengine')
from mmengine.optim import OptimWrapper  # noqa: E402

from vitzoo.mm import Classifier, FSDPStrategy  # noqa: E402

FAMILIES = list(zoo.FIRST.values())


@pytest.fixture(scope='module')
def strategy(tmp_path_factory):
    folder = tmp_path_factory.mktemp('fsdp')
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=0, world_size=1)
    try:
        yield FSDPStrategy(work_dir=str(folder), env_kwargs=dict(launcher='pytorch', randomness=dict(seed=0)))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize('name', [*FAMILIES, 'resnet10t'])
def test_gives_the_same_gradients(strategy, name):
    torch.manual_seed(0)
    plain = Classifier(name, num_classes=10)
    sharded = Classifier(name, num_classes=10)
    sharded.load_state_dict(plain.state_dict())
    sharded = strategy._wrap_model(sharded)
    images, labels = torch.rand(2, 3, 64, 64), torch.tensor([3, 7])
    for model in plain, sharded:
        torch.manual_seed(1)  # lookup tokens are drawn, paths dropped
        model.train()(images, labels, mode='loss')['loss'].backward()
    for (name, p), (same, q) in zip(plain.named_parameters(), sharded.named_parameters(), strict=True):
        assert name == same and p.shape == q.shape
        torch.testing.assert_close(q.grad.full_tensor(), p.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize('name', [*FAMILIES, 'swin_tiny_patch4_window7_224', 'vit_tiny_patch16_224'])
def test_gathers_block_by_block(name):
    """What is not in a block, and so gathered for the whole step, is the smaller part."""
    with torch.device('meta'):
        model = timm.create_model(name, num_classes=10)
    inside = sum(p.numel() for key, p in model.named_parameters() if 'blocks.' in key)
    assert inside > 0.6 * sum(p.numel() for p in model.parameters())


def test_needs_processes(strategy, monkeypatch):
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: False)
    with pytest.raises(ValueError, match='dist_train.sh'):
        strategy._wrap_model(Classifier('svit_micro'))


def test_optimizer_state_of_unsharded_training_is_refused(strategy):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    strategy.optim_wrapper = OptimWrapper(optimizer)
    with pytest.raises(ValueError, match='without FSDP'):
        strategy.load_optim_state_dict(optimizer.state_dict())
