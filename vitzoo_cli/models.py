"""Models by name, for the commands that build one."""
import argparse
import importlib.util
import re
from difflib import get_close_matches


def known(name: str) -> str:
    """`name` if it is registered, ours or timm's; else a ValueError with what was perhaps meant."""
    import timm

    import vitzoo  # noqa: F401  (registers our models)
    bare, _, tag = name.partition('.')
    if not timm.is_model(bare):
        close = get_close_matches(bare, timm.list_models(), n=3)
        raise ValueError(f'unknown model {name!r}' + (f'; did you mean {", ".join(close)}?' if close else '; see "vitzoo list"'))
    tags = list(tags_of(bare))
    if tag and tag not in tags:
        raise ValueError(f'{bare} has no tag {tag!r}; there are: {", ".join(t for t in tags if t) or "none"}')
    return name


def tags_of(name: str) -> dict:
    """Tag -> timm.models.PretrainedCfg of a registered name, the default tag first."""
    from timm.models import get_arch_pretrained_cfgs
    return {full.partition('.')[2]: cfg for full, cfg in get_arch_pretrained_cfgs(name).items()}


def our_models(pattern: str = '*') -> list[str]:
    """Registered names of ours that match a shell pattern."""
    import timm
    from timm.models import model_entrypoint

    import vitzoo  # noqa: F401
    return [name for name in timm.list_models(pattern) if model_entrypoint(name).__module__.startswith('vitzoo.')]


def where(cfg) -> str:
    """Where the weights of a timm.models.PretrainedCfg are, in words."""
    if cfg.hf_hub_id:
        return f'hf-hub:{cfg.hf_hub_id}' + (f'/{cfg.hf_hub_filename}' if cfg.hf_hub_filename else '')
    if cfg.url:
        return cfg.url
    if cfg.origin_url:
        return ', '.join([f'{cfg.origin_url} (by hand)', *(cfg.notes or ())])
    return 'none'


def how(cfgs) -> str:
    """Whether the weights of any of these timm.models.PretrainedCfg can be had, in a word."""
    if any(cfg.hf_hub_id or cfg.url for cfg in cfgs):
        return 'download'
    return 'by hand' if any(cfg.origin_url for cfg in cfgs) else '-'


def size(text: str) -> tuple[int, int]:
    """'224' or '128x160' -> (height, width), for argparse."""
    match = re.fullmatch(r'([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?', text)
    if not match:
        raise argparse.ArgumentTypeError(f'{text!r}: expected a number or HxW, such as 224 or 128x160')
    return int(match[1]), int(match[2] or match[1])


def count(text: str) -> int:
    """A number of classes, for argparse."""
    if not re.fullmatch(r'[1-9]\d{0,5}', text):
        raise argparse.ArgumentTypeError(f'{text!r}: expected a number from 1 to 999999')
    return int(text)


def add_reduce(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--reduce', metavar='METHOD[:OPTION=VALUE,...]',
                        help='reduce the tokens of a vision transformer by this method, such as tome, tome:r=8 or "evit:locations=(3,6)"')


def reduction(text: str | None) -> dict | None:
    """What was written behind --reduce as `method` and its options. Raises ValueError where it is not written so."""
    from vitzoo.reduction import parse_setting
    if text is None:
        return None
    setting = parse_setting(text)
    return {'method': setting.method, **setting.options}


def reduce(model, text: str):
    """Reduce the model's tokens so. Raises ValueError where that does not fit."""
    from vitzoo import reduce_tokens
    return reduce_tokens(model, **reduction(text))


def allow_runner_checkpoints(path: str) -> None:
    """Checkpoints of mmengine's Runner hold its logs beside the weights; the bridge knows how to read those safely."""
    if not str(path).endswith('.safetensors') and importlib.util.find_spec('mmengine'):
        import vitzoo.mm  # noqa: F401
