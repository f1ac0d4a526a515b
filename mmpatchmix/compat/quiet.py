"""Reason: the stack greets its users with messages that sound like errors and are none.

Exactly the messages listed here are dropped, by their text. They speak of optional
packages that nothing of ours uses, or of what the stack does by itself. The command line
calls :func:`install`; nothing that a Runner builds or imports does.
"""

import functools
import warnings

# print_log(..., level=DEBUG) without a logger prints all the same.
PRINTED = (
    'Could not import OneDL',
    'Could not import OneDL. Skipping OneDL datasets.',
)
# Beginnings, as regular expressions, of messages that reach the warnings module.
WARNED = (
    'faster_coco_eval is not installed, metrics will not be computed',
    # mmengine's own doing, in every process of a distributed run.
    'Setting MKL_NUM_THREADS environment variable for each process',
    '`broadcast_buffers` is deprecated',
)


def install() -> None:
    """Drop the messages from now on; does nothing when called again."""
    import mmengine.logging
    from mmengine.logging import print_log

    if hasattr(print_log, '__wrapped__'):
        return
    for message in WARNED:
        warnings.filterwarnings('ignore', message=message)

    @functools.wraps(print_log)
    def print_relevant(msg: object, *args: object, **kwargs: object) -> None:
        if msg not in PRINTED:
            print_log(msg, *args, **kwargs)

    # The stack takes print_log from here at the moment it prints.
    mmengine.logging.print_log = print_relevant
