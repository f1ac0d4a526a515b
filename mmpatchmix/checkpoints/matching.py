"""Comparison of a checkpoint's keys and shapes with the expected ones; mismatches are refused."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from mmpatchmix.checkpoints.key_names import strip_wrappers

_NUM_SHOWN = 20
# Modules whose children are counted separately in reports.
_SHARED = ('head', 'momentum_encoder', 'base_encoder', 'student', 'teacher')


@dataclass
class KeyReport:
    """The use of every key of a file."""

    used: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)  # on purpose, such as a projector or a head
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shape: list[str] = field(default_factory=list)  # 'key: (file) instead of (expected)'
    assumed: list[str] = field(default_factory=list)  # values that the file does not state
    notes: list[str] = field(default_factory=list)  # changes to the weights

    def __str__(self) -> str:
        """Return one line per kind; mismatches are listed by name."""
        parts = (key.split('.') for key in self.dropped)  # neck (9), head.predictor (6)
        groups = Counter('.'.join(part[: 2 if part[0] in _SHARED else 1]) for part in parts)
        dropped = ', '.join(f'{name} ({count})' for name, count in groups.items())
        lines = [f'used: {len(self.used)} keys', f'dropped on purpose: {dropped or "none"}']
        lines += [f'assumed: {text}' for text in self.assumed]
        lines += self.notes
        for name in ('missing', 'unexpected', 'wrong_shape'):
            keys = getattr(self, name)
            more = [f'and {len(keys) - _NUM_SHOWN} more'] * (len(keys) > _NUM_SHOWN)
            listed = ', '.join(keys[:_NUM_SHOWN] + more)
            lines.append(f'{name.replace("_", " ")}: {listed or "none"}')
        return '\n'.join(lines)

    def raise_unless_fits(self, problem: str, advice: str) -> None:
        """Raise ``ValueError`` with the report if a key is missing, unexpected or misshapen."""
        if self.missing or self.unexpected or self.wrong_shape:
            raise ValueError(f'{problem}; nothing was loaded. {advice}\n{self}')


def match_state_dict(
    state: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    drop: Iterable[str] = (),
    optional: Iterable[str] = (),
) -> tuple[dict[str, Tensor], KeyReport]:
    """Return the wanted weights, of which only keys and shapes are read, and the report.

    Keys of ``state`` that begin with ``drop`` are left out on purpose; wanted keys that end in
    ``optional`` may be missing.
    """
    drop, optional, report, taken = tuple(drop), tuple(optional), KeyReport(), {}
    for key, value in state.items():
        if key not in wanted:
            (report.dropped if key.startswith(drop) else report.unexpected).append(key)
        elif value.shape != wanted[key].shape:
            shapes = tuple(value.shape), tuple(wanted[key].shape)
            report.wrong_shape.append('{}: {} instead of {}'.format(key, *shapes))
        else:
            taken[key] = value
    report.used = list(taken)
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
    """Fit weights to a model, or raise. All strict loading goes through this function.

    Names of wrappers (``module.``) in the keys of ``state`` are removed; the model is not changed.
    Keys that begin with ``drop`` are not loaded, keys of the model that end in ``new`` may be
    missing and keep their values. Returns weights for ``model.load_state_dict(..., strict=True)``,
    and the report. A key that is missing, unexpected or of another shape raises ``ValueError`` with
    all of them, after ``source``, the name of the weights, and ``advice``, the remedy.
    """
    expected = model.state_dict()
    state = {k if k in expected else strip_wrappers(k): value for k, value in state.items()}
    taken, report = match_state_dict(state, expected, drop, new)
    report.raise_unless_fits(f'{source} does not fit the model', advice)
    return expected | taken, report
