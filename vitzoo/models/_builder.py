"""What timm calls: `build_model` for the entry points, and the hook for local files."""
import torch.nn as nn
from timm.models import build_model_with_cfg
from timm.models._builder import resolve_pretrained_cfg

from ..weights.files import StateDict, unwrap
from ..weights.layout import BESIDE_MODEL, Layout, convert, keep_counters, strip_prefixes
from ..weights.load import load_checkpoint


class PublishedWeights:
    """Mixin of models whose class says how published files are laid out; the hook that timm calls for files."""
    layouts: tuple[Layout, ...] = ()

    def load_pretrained(self, path: str) -> None:
        load_checkpoint(self, path, reset_head=self.num_classes != self.pretrained_cfg['num_classes'])


def checkpoint_filter_fn(state: StateDict, model: nn.Module) -> StateDict:
    """Any layout of the model's family to ours, in the form that timm's builder wants where it reads by itself (`hf-hub:` names)."""
    conversion, own = convert(strip_prefixes(unwrap(state), model), model), model.state_dict()
    state = {name: value for name, value in conversion.state.items() if not BESIDE_MODEL.match(name)}
    return keep_counters({**{name: own[name] for name in conversion.new}, **state}, model)


def build_model(model_cls: type[nn.Module], variant: str, pretrained: bool, **kwargs) -> nn.Module:
    """timm's `build_model_with_cfg` with our conversion, features by `forward_intermediates`, and clear errors about weights.

    A model class may name options that it has when built for its features alone, as `features_options`.

    Raises ValueError if weights are asked for that no program can download.
    """
    if kwargs.get('features_only'):
        kwargs = {**getattr(model_cls, 'features_options', {}), **kwargs}
    overlay = dict(kwargs.pop('pretrained_cfg_overlay', None) or {})
    cfg = resolve_pretrained_cfg(variant, kwargs.get('pretrained_cfg'), overlay)
    if pretrained and not (cfg.has_weights or cfg.state_dict):
        name = f'{variant}.{cfg.tag}' if cfg.tag else variant
        where = f'They are published at {cfg.origin_url} ({", ".join(cfg.notes or ())})' if cfg.origin_url else 'None were published'
        raise ValueError(
            f'No program can download weights for {name}. {where}. With a local file: '
            f"timm.create_model('{variant}', pretrained=True, pretrained_cfg_overlay=dict(file='FILE')), "
            'or vitzoo.load_checkpoint(model, FILE).')
    if not cfg.state_dict:  # files through our one door
        if cfg.file:
            overlay['custom_load'] = True
        elif cfg.hf_hub_id and cfg.hf_hub_filename:
            overlay['custom_load'] = 'hf'
    return build_model_with_cfg(
        model_cls, variant, pretrained,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=checkpoint_filter_fn,
        **{'feature_cfg': dict(out_indices=(0, 1, 2, 3), feature_cls='getter'), **kwargs},
    )
