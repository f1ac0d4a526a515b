"""Key by key comparison of two sets of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

_SHOWN = 20
# Parts that hold several things worth telling apart.
_SHARED = ('head', 'momentum_encoder', 'base_encoder')


@dataclass
class KeyReport:
    """What became of every key of a file.

    Attributes:
        used (list[str]): Taken.
        dropped (list[str]): Left out on purpose, such as a projector or a head.
        missing (list[str]): Wanted and not there.
        unexpected (list[str]): There and not known.
        wrong_shape (list[str]): Taken had the shape been right, each as
            ``key: (file) instead of (wanted)``.
        assumed (list[str]): What the file does not say and had to be assumed.
    """

    used: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shape: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether nothing is missing, unexpected or of another shape."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        """One line per kind; what is wrong is listed by name."""
        lines = [f'used: {len(self.used)} keys', f'dropped on purpose: {_groups(self.dropped)}']
        lines += [f'assumed: {text}' for text in self.assumed]
        for name in ('missing', 'unexpected', 'wrong_shape'):
            keys = getattr(self, name)
            more = f', and {len(keys) - _SHOWN} more' if len(keys) > _SHOWN else ''
            listed = ', '.join(keys[:_SHOWN]) + more
            lines.append(f'{name.replace("_", " ")}: {listed or "none"}')
        return '\n'.join(lines)

    def raise_unless_fits(self, what: str, advice: str) -> None:
        """Refuse what does not fit.

        Args:
            what (str): What does not fit what, the start of a sentence.
            advice (str): How to mend it, a sentence.

        Raises:
            ValueError: With the report, unless :attr:`fits`.
        """
        if not self.fits:
            raise ValueError(f'{what}; nothing was used. {advice}\n{self}')


def _groups(keys: list[str]) -> str:
    """Keys by their first parts with counts: ``neck (9), head.predictor (6)``."""
    counts: dict[str, int] = {}
    for key in keys:
        parts = key.split('.')
        name = '.'.join(parts[: 2 if parts[0] in _SHARED else 1])
        counts[name] = counts.get(name, 0) + 1
    return ', '.join(f'{name} ({count})' for name, count in counts.items()) or 'none'


def match_state_dict(
    state: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor | Iterable[int]],
    drop: Iterable[str] = (),
    optional: Iterable[str] = (),
) -> tuple[dict[str, Tensor], KeyReport]:
    """Take the wanted keys and say what became of all others. Never raises.

    Args:
        state (Mapping[str, Tensor]): What there is.
        wanted (Mapping[str, Tensor | Iterable[int]]): What is wanted, as
            tensors or shapes, a model's ``state_dict()`` for instance.
        drop (Iterable[str]): Beginnings of keys that are left out on purpose.
        optional (Iterable[str]): Endings of wanted keys that need not be there.

    Returns:
        tuple[dict[str, Tensor], KeyReport]: The fitting part, and the report.
    """
    drop, optional = tuple(drop), tuple(optional)
    report, taken = KeyReport(), {}
    shapes = {key: tuple(getattr(value, 'shape', value)) for key, value in wanted.items()}
    for key, value in state.items():
        if key not in shapes:
            (report.dropped if key.startswith(drop) else report.unexpected).append(key)
        elif tuple(value.shape) != shapes[key]:
            report.wrong_shape.append(f'{key}: {tuple(value.shape)} instead of {shapes[key]}')
        else:
            report.used.append(key)
            taken[key] = value
    report.missing = [key for key in shapes if key not in state and not key.endswith(optional)]
    return taken, report
