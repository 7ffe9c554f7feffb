"""The configs that come with the package in OpenMMLab's own manner, in `vitzoo/.mim/configs`: `_base_ = 'vitzoo::detection/...'` works.

In a clone `.mim` holds links to `configs/` and `tools/`, in a wheel the files themselves. This module stands on mmengine alone, since
`vitzoo.mm.enable` has it run as soon as mmengine is imported.
"""
import difflib
from pathlib import Path

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

__all__ = ['CONFIGS', 'config_path', 'register_configs']

CONFIGS = Path(__file__).parents[1].joinpath('.mim', 'configs').resolve()
SCOPE = 'vitzoo'


def config_path(name: str) -> Path:
    """The shipped config of that name: 'detection/mask-rcnn_svit_micro_digits', with or without 'vitzoo::' before it and '.py' behind.

    Raises:
        ValueError: there is none; with the names that are like it.
    """
    path = CONFIGS / f'{name.removeprefix(f"{SCOPE}::").removesuffix(".py")}.py'
    if not path.is_file():
        names = [p.relative_to(CONFIGS).with_suffix('').as_posix() for p in CONFIGS.glob('[!_]*/*.py')]
        if not names:
            raise ValueError(f'{CONFIGS} holds no configs: it is part of the package and of every clone, and was removed from this one')
        containing = sorted((n for n in names if name in n), key=lambda n: (not n.endswith(f'/{name}'), len(n)))
        close = containing[:3] or difflib.get_close_matches(name, names, n=3)
        raise ValueError(f'no config {name!r}' + (f'; did you mean {", ".join(close)}?' if close else f'; they are in {CONFIGS}'))
    return path


def register_configs() -> None:
    """Let mmengine find 'vitzoo::...' wherever it takes 'mmdet::...': in `_base_` and in `mmengine.hub.get_config`. Idempotent."""
    if SCOPE in MODULE2PACKAGE:
        return
    # mmengine asks for the distribution of this name, of which there is none, and then for the folder of the module: that of the package,
    # also where an editable install keeps it elsewhere than its distribution
    MODULE2PACKAGE[SCOPE] = 'vitzoo.registry'
    locate = Config._get_cfg_path

    def locate_without_scope(cfg_path: str, filename: str) -> tuple[str, str | None]:
        # our configs name what is ours as 'vitzoo.X'; every other name is one of their default_scope, not of vitzoo's registries
        path, scope = locate(cfg_path, filename)
        return path, None if scope == SCOPE else scope

    Config._get_cfg_path = staticmethod(locate_without_scope)
