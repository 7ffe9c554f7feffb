"""Golden cases of token reduction: DeiTs whose names are timm's."""
import timm
import torch
from golden import error, load_case, make_input, make_state_dict

import vitzoo


def build(facts: dict, **kwargs) -> torch.nn.Module:
    size = facts['kwargs'].get('size') or facts['model'].split('_')[1]
    return timm.create_model(f'deit_{size}_patch16_224', **kwargs).eval()


def reduced(path: str, method: str, **options) -> tuple[torch.nn.Module, torch.Tensor, dict]:
    """The model of a case with a method, its image, and what was published."""
    facts, published = load_case(path)
    model = vitzoo.reduce_tokens(build(facts), method, **options)
    model.load_state_dict(make_state_dict(facts['entries'], facts['rescale']))
    return model, make_input(facts['seed'], facts['shape']), published


def last_tokens(model: torch.nn.Module, image: torch.Tensor):
    """What comes out of the last block."""
    return model.forward_tokens(image)


def kept_patches(tokens) -> list[torch.Tensor]:
    """For each step that dropped tokens, which of its own it kept, (B, K), in order of their scores."""
    return [drop.order[:, :drop.num_kept] for drop in tokens.history]


def check_logits(model: torch.nn.Module, image: torch.Tensor, published: dict, limit: float = 1e-5) -> None:
    with torch.no_grad():
        assert error(model(image).numpy(), published['logits']) < limit
