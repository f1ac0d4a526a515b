"""Change the length of a run and of all its schedules together."""

from mmengine.config import Config


def set_epochs(cfg: Config, epochs: int) -> None:
    """Give a run another number of epochs; warm-up and ends keep their proportions.

    Args:
        cfg: Config with an epoch-based ``train_cfg``; changed in place.
        epochs: The new length, at least 1.

    Raises:
        ValueError: If ``epochs`` is below 1 or the run does not count in epochs.
    """
    if epochs < 1:
        raise ValueError(f'--epochs {epochs}: a run has at least one epoch.')
    if not cfg.train_cfg.get('max_epochs'):
        raise ValueError('--epochs needs a config whose train_cfg has max_epochs.')
    factor = epochs / cfg.train_cfg.max_epochs
    cfg.train_cfg.max_epochs = epochs
    for scheduler in cfg.get('param_scheduler') or []:
        if not scheduler.get('by_epoch', True):
            continue
        # Schedules per iteration may turn within an epoch, the others may not.
        digits = 6 if scheduler.get('convert_to_iter_based') else None
        for name in ('begin', 'end', 'T_max', 'step_size'):
            if scheduler.get(name):
                scheduler[name] = round(scheduler[name] * factor, digits)
        if scheduler.get('milestones'):
            scheduler['milestones'] = [round(m * factor) for m in scheduler['milestones']]
