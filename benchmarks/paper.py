"""Record the operations of an accelerator that does not exist: name, bytes and part of the step.

Its tensors are torch's fake ones, which have shapes and no values. Numbers that the host draws are
computed, so the step takes the branches that it would take.
"""

import bisect
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

from mmpatchmix.models import vit_blocks
from mmpatchmix.models.augment import colours, on_device, view_augment

SMALL = 64  # values; kernels on no more than these move nothing
IGNORED = ('aten.empty', 'aten.new_empty', 'prim.device', 'aten.detach', 'aten.alias')
IGNORED += ('aten._unsafe_view',)
# Operations that do not read their first argument.
WRITERS = ('aten.copy_', 'aten.fill_', 'aten.zero_', 'aten.new_', 'aten.zeros_', 'aten.ones_')
SELECTIONS = ('aten.index.', 'aten.index_select', 'aten.gather', 'aten.embedding.')
INSERTIONS = {'index_copy_': 3, 'index_put_': 2}  # and the number of their source
ATTENTION = 'aten._scaled_dot_product_flash_attention_for_cpu'


class Kernel(NamedTuple):
    """One operation: its part of the step, ATen name, bytes read and written, FLOPs of products."""

    part: str
    name: str
    num_bytes: int
    flops: int
    is_small: bool


class Parts:
    """Name the parts of a step; operations outside of all marked methods belong to ``default``."""

    def __init__(self, default: str = 'other') -> None:
        self.default, self._starts, self._parts = default, [0], [default]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Assign the body and its backward to a part."""
        before = self._parts[-1]
        self._enter(name)
        yield
        self._enter(before)

    def _enter(self, name: str) -> None:
        self._starts.append(torch._C._autograd._get_sequence_nr())
        self._parts.append(name)

    def mark(self, owner: object, method: str, name: str) -> None:
        """Assign ``owner.method`` to a part."""
        original = getattr(owner, method)

        @functools.wraps(original)
        def within(*args, **kwargs):
            with self.part(name):
                return original(*args, **kwargs)

        setattr(owner, method, within)

    def part_of(self, sequence_number: int) -> str:
        """Return the part whose forward gave a node of autograd its sequence number."""
        return self._parts[bisect.bisect_right(self._starts, sequence_number) - 1]


class Paper(Parts):
    """Record the kernels of the body of ``with paper.recording():``."""

    def __init__(self, default: str = 'other') -> None:
        super().__init__(default)
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.kernels: list[Kernel] = []
        self.part_of_variable: dict[int, str] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        # Fake tensors are on the CPU, whose autograd runs in this thread; the code that depends on
        # the device takes the branches of an accelerator.
        with (
            mock.patch.object(view_augment, 'on_cpu', on_device),
            mock.patch.object(on_device, 'CONVOLVES', ()),
            mock.patch.object(colours, 'choose_work_dtype', choose_half_for_bytes),
            mock.patch.object(colours, 'PIXELS_AT_ONCE', 2**62),
            mock.patch.object(vit_blocks, 'PLAIN_UP_TO', 0),
            mock.patch.object(clip_grad, '_has_foreach_support', lambda tensors, device: True),
            _Transfers(self),
            _Operations(self),
        ):
            yield

    def put(self, values: Tensor, name: str | None = None) -> Tensor:
        """Move a tensor of the host to the accelerator; record the copy if it has a name."""
        with torch._C.DisableTorchFunction():
            values = self.fake.from_tensor(values, static_shapes=True)
        if name:
            self.record(name, [values], count_bytes([values]))
        return values

    def mark_parameters(self, module: nn.Module, name: str) -> None:
        """Assign sums of the gradients of a module's parameters to a part."""
        self.part_of_variable |= dict.fromkeys(map(id, module.parameters()), name)

    def record(self, name: str, tensors: list[Tensor], num_bytes: int, flops: int = 0) -> None:
        """Append a kernel, which belongs to the running part or to that of its forward."""
        node, part = torch._C._current_autograd_node(), self._parts[-1]
        if node is not None and node.name().endswith('AccumulateGrad'):
            part = self.part_of_variable.get(id(node.variable), part)
        elif node is not None:
            part = self.part_of(node._sequence_nr())
        is_small = all(tensor.numel() <= SMALL for tensor in tensors)
        self.kernels.append(Kernel(part, name, num_bytes, flops, is_small))


class _Transfers(TorchFunctionMode):
    """Make tensors fake that the host creates on a device or sends to it."""

    def __init__(self, paper: Paper) -> None:
        super().__init__()
        self.paper = paper

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        is_sent = func is Tensor.to and any(isinstance(each, torch.device) for each in args)
        is_on_host = isinstance(out, Tensor) and not isinstance(out, FakeTensor)
        if not is_on_host or (not is_sent and kwargs.get('device') is None):
            return out
        name = 'copy to device' if is_sent else func.__name__
        return self.paper.put(out, None if func is torch.empty else name)


class _Operations(TorchDispatchMode):
    """Record operations on fake tensors that are not views."""

    def __init__(self, paper: Paper) -> None:
        super().__init__()
        self.paper = paper

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        tensors = find_tensors((args, kwargs, out))
        is_fake = any(isinstance(each, FakeTensor) for each in tensors)
        if is_fake and not func.is_view and not str(func).startswith(IGNORED):
            flops = count_flops(func, args, kwargs, out)
            self.paper.record(str(func), tensors, count_traffic(func, args, kwargs, out), flops)
        return out


def choose_half_for_bytes(images: Tensor) -> torch.dtype:
    return torch.float16 if images.dtype == torch.uint8 else torch.float32


def find_tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def count_bytes(values: object) -> int:
    """Return the bytes of tensors in memory; broadcast dimensions count once."""
    total = 0
    for tensor in find_tensors(values):
        dims = zip(tensor.shape, tensor.stride(), strict=True)
        total += tensor.element_size() * math.prod(n for n, stride in dims if stride or not n)
    return total


def count_traffic(func, args: tuple, kwargs: dict, out: object) -> int:
    """Return the bytes that an operation reads and writes, by its schema."""
    name, total = str(func), 0
    for number, argument in enumerate(func._schema.arguments):
        value = args[number] if number < len(args) else kwargs.get(argument.name)
        is_first = number == 0
        source = INSERTIONS.get(name.split('.')[1])
        if is_first and source:
            total += count_bytes(args[source])
            continue
        num_bytes = count_bytes(out if is_first and name.startswith(SELECTIONS) else value)
        if argument.alias_info is not None and argument.alias_info.is_write:
            total += num_bytes
        if not (argument.is_out or (is_first and name.startswith(WRITERS))):
            total += num_bytes
    results = out if isinstance(out, tuple | list) else [out]
    for returned, value in zip(func._schema.returns, results, strict=False):
        total += 0 if returned.alias_info else count_bytes(value)
    return total


def count_flops(func, args: tuple, kwargs: dict, out: object) -> int:
    """Return the FLOPs of a matrix product, or of attention, which torch's counter omits."""
    if str(func).startswith(ATTENTION):
        is_backward = 'backward' in str(func)
        query, key = args[1:3] if is_backward else args[:2]
        # Two products forward; backward the scores again, and two for each gradient of these.
        return (5 if is_backward else 2) * 2 * query.numel() * key.shape[-2]
    formula = flop_registry.get(func.overloadpacket)
    return formula(*args, **kwargs, out_val=out) if formula else 0


def use_compiled_colours(paper: Paper, num_kernels: int, bytes_per_value: int):
    """Return a patch that counts colours as compiled."""

    def change_colours(images, plan, to_rgb):
        paper.put(colours.arrange(plan), 'copy to device')
        for _ in range(num_kernels):
            paper.record('compiled', [images], bytes_per_value * images.numel() // num_kernels)
        return torch.empty_like(images, dtype=choose_half_for_bytes(images))

    return mock.patch.object(on_device, 'change_colours', change_colours)
