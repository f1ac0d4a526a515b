"""Operations on an accelerator that is not there: which, on how many bytes, for what.

Its tensors are torch's fake ones, which have shapes and no values. What the host draws and decides
is computed for real, so the step goes the way that it would go.
"""

import bisect
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mmpatchmix.models import data_preprocessor, vit_blocks
from mmpatchmix.models.augment import fused_colours, on_device

SMALL = 64  # values; kernels on no more than these move nothing
ALLOCATIONS = ('aten.empty', 'aten.new_empty', 'prim.device', 'aten.detach', 'aten.alias')
# Which do not read their first argument.
WRITERS = ('aten.copy_', 'aten.fill_', 'aten.zero_', 'aten.new_', 'aten.zeros_', 'aten.ones_')
SELECTIONS = ('aten.index.', 'aten.index_select', 'aten.gather', 'aten.embedding.')
INSERTIONS = ('aten.index_copy_', 'aten.index_put_')
ATTENTION = 'aten._scaled_dot_product_flash_attention_for_cpu'


class Kernel(NamedTuple):
    """One operation.

    Attributes:
        part: The part of the step that it belongs to.
        name: Its name in ATen.
        num_bytes: Bytes read and written.
        flops: Operations, where torch's counter knows them: those of matrix products.
        is_small: Whether its tensors hold no more than 64 values each.
    """

    part: str
    name: str
    num_bytes: int
    flops: int
    is_small: bool


class Parts:
    """Know which part of a step runs, and whose forward a node of the backward answers.

    Args:
        default: Part of what no :meth:`mark` says otherwise about.
    """

    def __init__(self, default: str = 'other') -> None:
        self.default = self._part = default
        self._starts, self._parts = [0], [default]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Say which part what runs inside belongs to, and its backward."""
        before = self._part
        self._enter(name)
        try:
            yield
        finally:
            self._enter(before)

    def _enter(self, name: str) -> None:
        self._part = name
        self._starts.append(torch._C._autograd._get_sequence_nr())
        self._parts.append(name)

    def mark(self, owner: object, method: str, name: str) -> None:
        """Make what ``owner.method`` does a part."""
        original = getattr(owner, method)

        @functools.wraps(original)
        def within(*args, **kwargs):
            with self.part(name):
                return original(*args, **kwargs)

        setattr(owner, method, within)

    def part_of(self, sequence_number: int) -> str:
        """Return the part whose forward gave a node of autograd its number."""
        return self._parts[bisect.bisect_right(self._starts, sequence_number) - 1]


class Paper(Parts):
    """Record the kernels of what runs inside ``with paper:``."""

    def __init__(self, default: str = 'other') -> None:
        super().__init__(default)
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.kernels: list[Kernel] = []
        self.part_of_variable: dict[int, str] = {}

    def __enter__(self) -> 'Paper':
        self._stack = ExitStack()
        # Fake tensors lie on the CPU, for which autograd has its thread here; what is chosen by
        # device is to be chosen as for an accelerator.
        for where, name, value in [
            (data_preprocessor, 'goes_to_cpu', lambda images: False),
            (on_device, 'CONVOLVES', ()),
            (on_device, 'choose_work_dtype', half_for_bytes),
            (fused_colours, 'choose_work_dtype', half_for_bytes),
            (vit_blocks, 'PLAIN_UP_TO', 0),
            (clip_grad, '_has_foreach_support', lambda tensors, device: True),
        ]:
            self._stack.enter_context(mock.patch.object(where, name, value))
        self._stack.enter_context(_Sent(self))
        self._stack.enter_context(_Count(self))
        return self

    def __exit__(self, *error) -> None:
        self._stack.close()

    def put(self, values: Tensor) -> Tensor:
        """Put a tensor of the host on the accelerator."""
        with torch._C.DisableTorchFunction():
            return self.fake.from_tensor(values, static_shapes=True)

    def put_counted(self, values: Tensor, name: str = 'copy to device') -> Tensor:
        """Put a tensor of the host on the accelerator, and note it down."""
        values = self.put(values)
        self.record(name, [values], count_bytes([values]))
        return values

    def mark_parameters(self, module: nn.Module, name: str) -> None:
        """Say which part sums of gradients of a module's parameters belong to."""
        self.part_of_variable |= dict.fromkeys(map(id, module.parameters()), name)

    def record(self, name: str, tensors: list[Tensor], num_bytes: int, flops: int = 0) -> None:
        """Note down a kernel."""
        is_small = all(tensor.numel() <= SMALL for tensor in tensors)
        self.kernels.append(Kernel(self._find_part(), name, num_bytes, flops, is_small))

    def _find_part(self) -> str:
        node = torch._C._current_autograd_node()
        if node is None:
            return self._part
        if node.name().endswith('AccumulateGrad'):
            return self.part_of_variable.get(id(node.variable), self._part)
        return self.part_of(node._sequence_nr())


class _Sent(TorchFunctionMode):
    """What the host makes for a device, or sends to it, becomes fake."""

    def __init__(self, paper: Paper) -> None:
        super().__init__()
        self.paper = paper

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not isinstance(out, Tensor) or isinstance(out, FakeTensor):
            return out
        is_sent = func is Tensor.to and any(isinstance(each, torch.device) for each in args)
        if not is_sent and kwargs.get('device') is None:
            return out
        if func is torch.empty:
            return self.paper.put(out)
        return self.paper.put_counted(out, 'copy to device' if is_sent else func.__name__)


class _Count(TorchDispatchMode):
    def __init__(self, paper: Paper) -> None:
        super().__init__()
        self.paper = paper

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        tensors = find_tensors((args, kwargs, out))
        name = str(func)
        is_there = any(isinstance(each, FakeTensor) for each in tensors)
        if is_there and not func.is_view and not name.startswith(ALLOCATIONS):
            if name.startswith('aten._unsafe_view'):
                return out
            reads, writes = find_traffic(func, args, kwargs, out)
            flops = count_flops(func, args, kwargs, out)
            self.paper.record(name, tensors, reads + writes, flops)
        return out


def half_for_bytes(images: Tensor) -> torch.dtype:
    return torch.float16 if images.dtype == torch.uint8 else torch.float32


def find_tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def count_bytes(values: object) -> int:
    """Bytes of tensors in memory; what is broadcast is there once."""
    total = 0
    for tensor in find_tensors(values):
        num = tensor.element_size()
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            num *= 1 if stride == 0 and size > 0 else size
        total += num
    return total


def find_traffic(func, args: tuple, kwargs: dict, out: object) -> tuple[int, int]:
    """Bytes that an operation reads and writes, by its schema."""
    name, reads, writes = str(func), 0, 0
    for number, argument in enumerate(func._schema.arguments):
        value = args[number] if number < len(args) else kwargs.get(argument.name)
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        num_bytes = count_bytes(value)
        if number == 0 and name.startswith(SELECTIONS):
            num_bytes = count_bytes(out)
        if number == 0 and name.startswith(INSERTIONS):
            source = args[3] if 'index_copy' in name else args[2]
            reads, writes, num_bytes, is_written = reads, count_bytes(source), 0, False
        if is_written:
            writes += num_bytes
        if not (argument.is_out or (number == 0 and name.startswith(WRITERS))):
            reads += num_bytes
    results = out if isinstance(out, tuple | list) else [out]
    for returned, value in zip(func._schema.returns, results, strict=False):
        if returned.alias_info is None:
            writes += count_bytes(value)
    return reads, writes


def count_flops(func, args: tuple, kwargs: dict, out: object) -> int:
    """Operations of a matrix product, as torch counts them; of attention, which it leaves out."""
    if str(func).startswith(ATTENTION):
        backward = 'backward' in str(func)
        query, key = args[1:3] if backward else args[:2]
        # Two products forward. Backward the scores again, and two of each gradient's.
        products = 5 if backward else 2
        return products * 2 * query.numel() * key.shape[-2]
    formula = flop_registry.get(func.overloadpacket)
    if formula is None:
        return 0
    return formula(*args, **kwargs, out_val=out)


def use_compiled_colours(paper: Paper, num_kernels: int, bytes_per_value: int):
    """Return a patch that counts colours as compiled."""

    def apply(images, plan, to_rgb):
        paper.put_counted(fused_colours.arrange(plan))
        out = torch.empty_like(images, dtype=half_for_bytes(images))
        for _ in range(num_kernels):
            share = bytes_per_value * images.numel() // num_kernels
            paper.record('compiled', [images], share)
        return out

    return mock.patch.object(fused_colours, 'try_apply', apply)
