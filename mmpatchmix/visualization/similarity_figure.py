"""A picture of what similarity tells: the shares of a mix, and the class of the nearest."""

from collections.abc import Mapping

from matplotlib.figure import Figure


def draw_similarity(calibrations: Mapping[int, dict], agreement: dict[str, float] | None) -> Figure:
    """Draw predicted against true shares, and how many of the nearest images share the class.

    Args:
        calibrations: By ``M``, from :func:`mmpatchmix.evaluation.similarity.calibrate`.
        agreement: From :func:`mmpatchmix.evaluation.similarity.class_agreement`; None without
            labels.
    """
    num_axes = bool(calibrations) + bool(agreement)
    figure = Figure(figsize=(5.2 * num_axes, 4.6), layout='constrained', dpi=110)
    axes = iter(figure.subplots(1, num_axes, squeeze=False)[0])
    if calibrations:
        axis = next(axes)
        axis.plot([0, 1], [0, 1], color='0.6', linestyle='--', label='as the shares say')
        for num_mix, calibration in calibrations.items():
            true, predicted, spread, _ = zip(*calibration['curve'], strict=True)
            (line,) = axis.plot(true, predicted, marker='o', label=f'mixes of {num_mix} images')
            low, high = zip(
                *((p - s, p + s) for p, s in zip(predicted, spread, strict=True)), strict=True
            )
            axis.fill_between(true, low, high, color=line.get_color(), alpha=0.12)
        axis.set(
            xlabel='true share of an image in the mix',
            ylabel='share that similarity tells',
            title='Is a mix as similar as its shares say?',
            xlim=(0, 1),
            ylim=(0, 1),
        )
        axis.legend(loc='upper left')
    if agreement:
        axis = next(axes)
        found = {
            name.rpartition('_')[2]: value
            for name, value in agreement.items()
            if name.startswith('precision_at_')
        }
        bars = axis.bar(list(found), [100 * value for value in found.values()], width=0.6)
        axis.bar_label(bars, fmt='%.1f')
        axis.set(
            xlabel='nearest images',
            ylabel='of the same class (%)',
            title=f'Do similar images share a class? AUROC {agreement["auroc"]:.3f}',
            ylim=(0, 105),
        )
    return figure
