import pytest
import torch

pytest.importorskip('mmengine')
from vitzoo.mm import ClassDiceLoss  # noqa: E402


def test_class_dice_is_what_it_says():
    logits = torch.randn(2, 4, 6, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randint(3, (2, 6, 5))  # no pixel of class 3
    target[0, :2] = 255
    got = ClassDiceLoss(loss_weight=2.)(logits, target)

    share, expected = logits.softmax(1), 0
    for k in range(4):
        truth, mine = (target == k).double(), share[:, k] * (target != 255)
        expected += (1 - (2 * (mine * truth).sum() + 1) / ((mine ** 2).sum() + truth.sum() + 1)) / 4
    assert got.item() == pytest.approx(2 * expected.item())
    grads = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (got, 2 * expected)]
    torch.testing.assert_close(*grads)
    assert not grads[0][0, :, :2].any()
