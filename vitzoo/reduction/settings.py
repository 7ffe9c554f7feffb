"""A method with its options as one thing that has a name: what is compared, and how it is written in a command."""
import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

from ..arguments import show
from .method import Method
from .methods import METHODS


@dataclass(frozen=True)
class Setting:
    """A method by name, and options for it; what is not named is as the method has it."""
    method: str
    options: dict = field(default_factory=dict)

    def __str__(self) -> str:
        return ' '.join([self.method, *(f'{name}={_short(value)}' for name, value in self.options.items())])


def _short(value: object) -> str:
    return value if isinstance(value, str) else repr(value).replace(' ', '')


def setting_of(method: Method) -> str:
    """A method in words: its name, and the options that are not as they are by themselves."""
    name = next((name for name, kind in METHODS.items() if kind is type(method)), type(method).__name__)
    chosen = {f.name: getattr(method, f.name) for f in fields(method) if getattr(method, f.name) != f.default}
    return str(Setting(name, chosen))


def parse_setting(text: str) -> Setting:
    """'tome', 'tome:r=8' or 'evit:keep_rate=0.5,locations=(2,4)' -> a setting; words need no quotes.

    Raises ValueError where it is not written like that, or there is no such method or option. Values are checked by `reduce_tokens`.
    """
    method, _, options = text.partition(':')
    check_method(method.strip())
    try:
        call = ast.parse(f'f({options})', mode='eval').body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args or any(k.arg is None for k in call.keywords):
            raise SyntaxError
        values = {k.arg: k.value.id if isinstance(k.value, ast.Name) else ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise ValueError(f'setting {show(text)}: expected METHOD:OPTION=VALUE,OPTION=VALUE, such as tome:r=8 or '
                         'evit:keep_rate=0.5,locations=(3,6,9).') from None
    names = [option.name for option in fields(METHODS[method.strip()])]
    if unknown := [name for name in values if name not in names]:
        raise ValueError(f'setting {show(text)}: {method.strip()} has no option {unknown[0]!r}; there are: {", ".join(names)}.')
    return Setting(method.strip(), values)


def check_method(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f'method {show(name)}: expected one of {", ".join(METHODS)}.')
    return name


def default_settings(depth: int, num_patches: int, methods: Sequence[str] = ()) -> list[Setting]:
    """Two or three settings of each method, for a model of so many blocks and patches; nothing chosen means all methods.

    Numbers that the papers give for 12 blocks and 196 patches are scaled to these. A method that has no entry in `_DEFAULTS` comes once,
    with the options that it has by itself.

    Raises ValueError for an unknown method.
    """
    shape = _Shape(depth, num_patches)
    return [Setting(method, options) for method in map(check_method, dict.fromkeys(methods or METHODS))
            for options in _DEFAULTS.get(method, lambda shape: [{}])(shape)]


@dataclass(frozen=True)
class _Shape:
    depth: int
    num_patches: int

    @property
    def quarters(self) -> tuple[int, ...]:
        """Blocks at a quarter, a half and three quarters of the depth: 3, 6 and 9 of 12."""
        return tuple(dict.fromkeys(self.depth * i // 4 for i in (1, 2, 3)))

    def per_block(self, tokens: float) -> int:
        """So many tokens a block, of 12 blocks and 196 patches, here."""
        return max(1, round(tokens * 12 / self.depth * self.num_patches / 196))

    @property
    def basis(self) -> dict:
        """A basis of 8 rows at least, as many as Sparsifiner's own options ask for; nothing where it has these anyway."""
        factor = self.num_patches // 8
        return {} if factor >= 6 else {'reduce_n_factor': max(1, factor)}

    def clusters(self, share: float) -> tuple[int, int]:
        """A square of clusters that are this share of the patches."""
        return (max(1, round((share * self.num_patches) ** 0.5)),) * 2


_DEFAULTS: dict[str, Callable[[_Shape], list[dict]]] = {
    'evit': lambda s: [dict(keep_rate=rate, locations=s.quarters) for rate in (0.8, 0.7, 0.5)],
    'tome': lambda s: [dict(r=s.per_block(r)) for r in (8, 13, 16)],
    'gtp': lambda s: [dict(num_prop=s.per_block(number)) for number in (4, 8, 12)],
    'expedite': lambda s: [dict(location=max(0, s.depth // 4), clusters=s.clusters(share)) for share in (0.5, 0.25)],
    'dynamicvit': lambda s: [dict(keep_rate=rate, locations=s.quarters) for rate in (0.8, 0.7, 0.5)],
    'select': lambda s: [dict(location=s.depth // 3, keep=share, **by) for share, by in (
        (0.5, {}), (0.3, {}), (0.5, {'score': 'similarity'}))],
    'sparsifiner': lambda s: [dict(attn_keep=share, **s.basis) for share in (0.5, 0.25)],
}
