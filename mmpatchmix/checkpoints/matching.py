"""Compare two sets of weights key by key; what does not fit is refused."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

_SHOWN = 20
# Parts that hold several things worth telling apart.
_SHARED = ('head', 'momentum_encoder', 'base_encoder', 'student', 'teacher')


@dataclass
class KeyReport:
    """What became of every key of a file.

    Attributes:
        used: Taken.
        dropped: Left out on purpose, such as a projector or a head.
        missing: Wanted and not there.
        unexpected: There and not known.
        wrong_shape: Each as ``key: (file) instead of (wanted)``.
        assumed: What the file does not say and had to be assumed.
        notes: What else was done to the weights.
    """

    used: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shape: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return one line per kind; what is wrong is listed by name."""
        # neck (9), head.predictor (6)
        parts = (key.split('.') for key in self.dropped)
        groups = Counter('.'.join(part[: 2 if part[0] in _SHARED else 1]) for part in parts)
        dropped = ', '.join(f'{name} ({count})' for name, count in groups.items())
        lines = [f'used: {len(self.used)} keys', f'dropped on purpose: {dropped or "none"}']
        lines += [f'assumed: {text}' for text in self.assumed]
        lines += self.notes
        for name in ('missing', 'unexpected', 'wrong_shape'):
            keys = getattr(self, name)
            more = f', and {len(keys) - _SHOWN} more' if len(keys) > _SHOWN else ''
            listed = ', '.join(keys[:_SHOWN]) + more
            lines.append(f'{name.replace("_", " ")}: {listed or "none"}')
        return '\n'.join(lines)

    def raise_unless_fits(self, what: str, advice: str) -> None:
        """Refuse what does not fit.

        Args:
            what: What does not fit what, the start of a sentence.
            advice: How to mend it, a sentence.

        Raises:
            ValueError: With the report, if a key is missing, unexpected or of another shape.
        """
        if self.missing or self.unexpected or self.wrong_shape:
            raise ValueError(f'{what}; nothing was loaded. {advice}\n{self}')


def match_state_dict(
    state: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    drop: Iterable[str] = (),
    optional: Iterable[str] = (),
) -> tuple[dict[str, Tensor], KeyReport]:
    """Take the wanted keys and say what became of all others. Never raises.

    Args:
        state: What there is.
        wanted: What is wanted; only the shapes count.
        drop: Beginnings of keys that are left out on purpose.
        optional: Endings of wanted keys that need not be there.

    Returns:
        tuple: The part that fits, and the report.
    """
    drop, optional = tuple(drop), tuple(optional)
    report, taken = KeyReport(), {}
    for key, value in state.items():
        if key not in wanted:
            (report.dropped if key.startswith(drop) else report.unexpected).append(key)
        elif value.shape != wanted[key].shape:
            shapes = tuple(value.shape), tuple(wanted[key].shape)
            report.wrong_shape.append('{}: {} instead of {}'.format(key, *shapes))
        else:
            report.used.append(key)
            taken[key] = value
    report.missing = [key for key in wanted if key not in state and not key.endswith(optional)]
    return taken, report


def fit_state_dict(
    state: Mapping[str, Tensor],
    model: nn.Module,
    source: str,
    advice: str = 'Use the config it was trained with.',
    drop: Iterable[str] = (),
    new: Iterable[str] = (),
) -> tuple[dict[str, Tensor], KeyReport]:
    """Fit weights to a model: all of them, or an error. The only strict loading there is.

    Args:
        state: Weights, perhaps with ``module.`` before the names.
        model: The model; not changed.
        source: What the weights are, the start of the error.
        advice: How to mend it, a sentence.
        drop: Beginnings of keys that the model has no use for.
        new: Endings of keys of the model that need not be there; they keep their values.

    Returns:
        tuple: Weights for ``model.load_state_dict(..., strict=True)``, and what became of
        every key.

    Raises:
        ValueError: If a key is missing, unexpected or of another shape; all are named.
    """
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    expected = model.state_dict()
    taken, report = match_state_dict(state, expected, drop, new)
    report.raise_unless_fits(f'{source} does not fit the model', advice)
    return expected | taken, report
