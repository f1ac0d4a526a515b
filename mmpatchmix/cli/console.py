"""Keep the console for what a person reads; the log file stays complete."""

import logging
import warnings

from mmpatchmix.compat import quiet

# Beginnings of records the Runner writes at start-up and every epoch.
FILE_ONLY = (
    '\n------------------------------------------------------------\nSystem environment',
    'Config:\n',
    'Hooks will be executed',
    'Exp name:',
    'Distributed training is not used',
    'LR is set based on batch size',
    'Checkpoints will be saved to',
    'Saving checkpoint at',
    'paramwise_options',
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    'The length of test_evaluator',
)


def quiet_stack() -> None:
    """Drop start-up messages of the stack that mislead, from now on, in this process."""
    quiet.install()
    # Torch does without by itself; the description of the run speaks of workers and cores.
    warnings.filterwarnings('ignore', message="'pin_memory' argument is set as true but no acc")
    warnings.filterwarnings('ignore', message='This DataLoader will create .* worker processes')


def with_concise_console(runner_class: type) -> type:
    """Make a Runner class whose console leaves out what is in ``FILE_ONLY``.

    Args:
        runner_class: mmengine's Runner or another one.
    """

    class ConciseRunner(runner_class):
        def build_logger(self, *args, **kwargs) -> logging.Logger:
            logger = super().build_logger(*args, **kwargs)
            for handler in logger.handlers:
                if not isinstance(handler, logging.FileHandler):
                    handler.addFilter(lambda record: not str(record.msg).startswith(FILE_ONLY))
            return logger

    return ConciseRunner
