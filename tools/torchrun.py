#!/usr/bin/env python
"""Run torchrun with signals forwarded to its processes; torchrun.sh calls this.

torchrun itself exits on SIGUSR1, the signal for a checkpoint, and orphans its processes. The exit
code is that of the processes: 75 if the run is to be continued, 130 after Ctrl-C.
"""

import os
import signal
import sys
from types import FrameType

from torch.distributed.elastic.multiprocessing import PContext, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

EXIT_AGAIN, EXIT_INTERRUPTED = 75, 130
# Time for an iteration and a checkpoint before stopped processes are killed.
STOP_SECONDS = int(os.environ['STOP_SECONDS'])  # of torchrun.sh


def stop(number: int, frame: FrameType | None) -> None:
    """End the run as torchrun does on SIGTERM: forward the signal and wait."""
    raise SignalException(f'got {signal.Signals(number).name}', signal.Signals(number))


if __name__ == '__main__':
    signal.signal(signal.SIGUSR1, stop)
    PContext.close.__defaults__ = (None, STOP_SECONDS)  # 30 in torch
    try:
        main()
    except SignalException as error:
        sys.exit(EXIT_INTERRUPTED if error.sigval == signal.SIGINT else EXIT_AGAIN)
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        ended = codes & {EXIT_AGAIN, EXIT_INTERRUPTED}
        if ended:
            sys.exit(max(ended))
        rank, failure = error.get_first_failure()
        sys.exit(f'rank {rank} ended first, exit code {failure.exitcode}; its output is above')
