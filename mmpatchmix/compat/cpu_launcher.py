"""Reason: mmengine's ``--launcher pytorch`` calls ``torch.cuda.set_device`` without a GPU, too.

Without an accelerator the process group is started with gloo, otherwise by mmengine's function.
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
_SIOCGIFADDR = 0x8915  # ioctl: the IPv4 address of an interface


@functools.cache
def open_store() -> Store:
    """Connect to the store at ``MASTER_ADDR``; ``ValueError`` after :data:`MEETING_SECONDS`."""
    address, port = place = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
    is_agents = os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'
    try:
        store = TCPStore(
            *place,
            int(os.environ['WORLD_SIZE']),
            is_master=int(os.environ['RANK']) == 0 and not is_agents,
            timeout=timedelta(seconds=MEETING_SECONDS),
            wait_for_workers=False,  # engine.ranks.exchange() waits and names missing ranks
            multi_tenant=True,
        )
    except DistError as error:
        raise ValueError(
            f'rank {os.environ["RANK"]}: no answer at MASTER_ADDR={address}, port {port}, within '
            f'{MEETING_SECONDS} s ({str(error).splitlines()[0]}). Check that the first machine is '
            'started, that the address is its own, and that the port is open.'
        ) from error
    return PrefixStore(f'attempt-{os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)}', store)


def install() -> None:
    """Wrap mmengine's launcher; repeated calls change nothing."""
    original = utils._init_dist_pytorch
    if hasattr(original, '__wrapped__'):
        return

    @functools.wraps(original)
    def init_dist(backend: str, init_backend: str = 'torch', **kwargs: Any) -> None:
        # kwargs are those of env_cfg.dist_cfg, e.g. the timeout.
        if init_backend != 'torch':
            original(backend, init_backend=init_backend, **kwargs)
            return
        set_gloo_interface()
        device = get_device().split(':')[0]
        if device in ('cuda', 'cpu'):  # for other devices mmengine passes rank and world size
            place = {key: int(os.environ[key.upper()]) for key in ('rank', 'world_size')}
            kwargs = dict(store=open_store(), **place) | kwargs
        if device != 'cpu':
            original(backend, init_backend=init_backend, **kwargs)
            return
        backend = 'gloo' if backend == 'nccl' else backend
        distributed.init_process_group(backend=backend, **kwargs)

    utils._init_dist_pytorch = init_dist


def set_gloo_interface() -> None:
    """Set ``GLOO_SOCKET_IFNAME`` to the network interface with a route to the first machine.

    gloo by itself publishes the address of the host name, which may be 127.0.0.1.
    """
    if 'GLOO_SOCKET_IFNAME' in os.environ:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # sends nothing
        try:
            probe.connect((os.environ['MASTER_ADDR'], 1))
        except OSError:  # no route by IPv4
            return
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack('256s', name.encode()))
            except OSError:  # an interface without an address
                continue
            address = socket.inet_ntoa(answer[20:24])
            if address == own and not own.startswith('127.'):
                os.environ['GLOO_SOCKET_IFNAME'] = name
