"""Reason: mmengine's ``--launcher pytorch`` calls ``torch.cuda.set_device`` without asking.

On a machine with CPUs only the processes then stop before they have met. Here they
meet over gloo. Where mmengine finds an accelerator, its own function runs. Both meet in
the store of :mod:`mmpatchmix.engine.ranks`.
"""

import fcntl
import functools
import os
import socket
import struct
from datetime import timedelta
from typing import Any

from mmengine.device import get_device
from mmengine.dist import utils
from torch import distributed
from torch.distributed import DistError, PrefixStore, Store, TCPStore

MEETING_SECONDS = 60


@functools.cache
def open_store() -> Store:
    """Connect to the store that ``MASTER_ADDR`` and ``MASTER_PORT`` name; once per process.

    Raises:
        ValueError: If nobody answers there within :data:`MEETING_SECONDS`.
    """
    address, port = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
    is_agents = os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'
    try:
        store = TCPStore(
            address,
            port,
            int(os.environ['WORLD_SIZE']),
            is_master=int(os.environ['RANK']) == 0 and not is_agents,
            timeout=timedelta(seconds=MEETING_SECONDS),
            wait_for_workers=False,  # exchange() waits, and says for whom
            multi_tenant=True,
        )
    except DistError as error:
        raise ValueError(
            f'rank {os.environ["RANK"]}: nobody answers at MASTER_ADDR={address}, port {port}, '
            f'within {MEETING_SECONDS} s ({str(error).splitlines()[0]}). Is the first machine '
            'started, the address its own, and the port open?'
        ) from error
    return PrefixStore(f'attempt-{os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)}', store)


def install() -> None:
    """Wrap mmengine's launcher; does nothing when called again."""
    original = utils._init_dist_pytorch
    if hasattr(original, '__wrapped__'):
        return

    @functools.wraps(original)
    def init_dist(backend: str, init_backend: str = 'torch', **kwargs: Any) -> None:
        # kwargs are those of env_cfg.dist_cfg, e.g. the timeout.
        if init_backend != 'torch':
            original(backend, init_backend=init_backend, **kwargs)
            return
        name_interface()
        place = {key: int(os.environ[key.upper()]) for key in ('rank', 'world_size')}
        kwargs = dict(store=open_store(), **place) | kwargs
        device = get_device().split(':')[0]
        if device == 'cuda':
            original(backend, init_backend=init_backend, **kwargs)
        elif device == 'cpu':
            backend = 'gloo' if backend == 'nccl' else backend
            distributed.init_process_group(backend=backend, **kwargs)
        else:  # mmengine gives these their ranks itself
            kwargs = {k: v for k, v in kwargs.items() if k not in ('store', *place)}
            original(backend, init_backend=init_backend, **kwargs)

    utils._init_dist_pytorch = init_dist


def name_interface() -> None:
    """Tell gloo the network interface that leads to the first machine; it would take loopback.

    A machine whose name resolves to 127.0.0.1 gives the others that address to dial.
    """
    if 'GLOO_SOCKET_IFNAME' in os.environ:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # sends nothing
        try:
            probe.connect((os.environ['MASTER_ADDR'], 1))
        except OSError:  # no IPv4 there: gloo looks by itself
            return
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, 0x8915, struct.pack('256s', name.encode()))
            except OSError:  # without an address
                continue
            address = socket.inet_ntoa(answer[20:24])
            if address == own and not own.startswith('127.'):
                os.environ['GLOO_SOCKET_IFNAME'] = name
