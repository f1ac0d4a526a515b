"""Keep the console for what a person reads; the log file stays complete."""

import functools
import logging
import warnings

# What the stack says that sounds like an error and is none: it speaks of optional packages that
# nothing of ours uses, or of what the stack does by itself. Exactly these texts are dropped.
# print_log(..., level=DEBUG) without a logger prints all the same:
PRINTED = ('Could not import OneDL', 'Could not import OneDL. Skipping OneDL datasets.')
# Beginnings, as regular expressions, of messages that reach the warnings module.
WARNED = (
    'faster_coco_eval is not installed, metrics will not be computed',
    # mmengine's own doing, in every process of a distributed run.
    'Setting MKL_NUM_THREADS environment variable for each process',
    '`broadcast_buffers` is deprecated',
)
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
    'Please make sure that the mlflow server is running',  # said of a local file too
)


def quiet_stack() -> None:
    """Drop start-up messages of the stack that mislead, from now on, in this process."""
    import mmengine.logging
    from mmengine.logging import print_log

    if hasattr(print_log, '__wrapped__'):
        return
    logging.raiseExceptions = False  # a traceback for every line, on a full disk
    for message in WARNED:
        warnings.filterwarnings('ignore', message=message)
    # Torch does without by itself; the description of the run speaks of workers and cores.
    warnings.filterwarnings('ignore', message="'pin_memory' argument is set as true but no acc")
    warnings.filterwarnings('ignore', message='This DataLoader will create .* worker processes')

    @functools.wraps(print_log)
    def print_relevant(msg: object, *args: object, **kwargs: object) -> None:
        if msg not in PRINTED:
            print_log(msg, *args, **kwargs)

    # The stack takes print_log from here at the moment it prints.
    mmengine.logging.print_log = print_relevant


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
