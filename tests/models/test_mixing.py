"""Mixing and targets against the authors' package, naive code and painted provenance."""

import importlib.util
import math
import random
import sys

import numpy as np
import patchmix
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from mmpatchmix.models import draw_groups, mix_patches, mix_to_mix, mix_to_source, mixing


def naive_mix(images, groups, patch_size):
    """Pixel by pixel, as the equation reads."""
    mixed = torch.empty_like(images)
    num_images, _, height, width = images.shape
    for n in range(num_images):
        for y in range(height):
            for x in range(width):
                position = (y // patch_size) * (width // patch_size) + x // patch_size
                mixed[n, :, y, x] = images[(n + int(groups[position])) % num_images, :, y, x]
    return mixed


def dense(target, num_images):
    """The N x N matrix a sparse target stands for."""
    offsets, weights = target
    matrix = torch.zeros(num_images, num_images, dtype=torch.float64)
    for n in range(num_images):
        for offset, weight in zip(offsets.tolist(), weights.tolist(), strict=True):
            matrix[n, (n + offset) % num_images] += weight
    return matrix


def provenance(num_images, groups):
    """Which image each patch comes from, read off images painted with their index: (N, T)."""
    painted = torch.arange(num_images).view(-1, 1, 1, 1).expand(-1, 1, 1, len(groups))
    return mix_patches(painted, groups, 1).flatten(1)


@pytest.mark.parametrize('num_mix', [1, 2, 3, 5, 16])
@pytest.mark.parametrize(('height', 'width', 'patch_size'), [(8, 8, 2), (4, 16, 2), (12, 20, 4)])
def test_mix_equals_pixel_loop(num_mix, height, width, patch_size):
    images = torch.randn(5, 3, height, width, generator=torch.Generator().manual_seed(0))
    num_patches = (height // patch_size) * (width // patch_size)
    groups = draw_groups(num_patches, min(num_mix, num_patches))
    assert torch.equal(
        mix_patches(images, groups, patch_size), naive_mix(images, groups, patch_size)
    )


@pytest.mark.parametrize(
    'dtype', [torch.uint8, torch.int64, torch.bfloat16, torch.float16, torch.float64]
)
def test_mix_keeps_dtype_and_takes_any_memory_layout(dtype):
    images = torch.randint(0, 255, (4, 3, 8, 8)).to(dtype)
    groups = draw_groups(16, 3)
    expected = naive_mix(images, groups, 2)
    padded = torch.zeros(5, 3, 9, 11, dtype=dtype)
    padded[1:, :, 1:, 2:10] = images
    layouts = {
        'contiguous': images,
        'channels last': images.to(memory_format=torch.channels_last),
        'a window of larger images': padded[1:, :, 1:, 2:10],
        'transposed': images.mT.contiguous().mT,
        'every other image': images.repeat_interleave(2, dim=0)[::2],
    }
    for name, layout in layouts.items():
        mixed = mix_patches(layout, groups, 2)
        assert mixed.dtype == dtype, name
        assert torch.equal(mixed, expected), name


class Traffic(TorchDispatchMode):
    """Record operators with the bytes of the tensors that they read and write."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [each for each in (*args, result) if isinstance(each, torch.Tensor)]
        self.seen.append((str(func), sum(each.nbytes for each in tensors)))
        return result


def test_the_work_of_mixing_does_not_depend_on_the_number_of_images_per_mix():
    images, works = torch.randn(16, 3, 32, 32), []
    for num_mix in (2, 3, 8, 64):
        groups = draw_groups(64, num_mix)
        with Traffic() as traffic:
            traffic.seen = []
            mix_patches(images, groups, 4)
        works.append(traffic.seen)
    assert len(works[0]) > 0 and all(work == works[0] for work in works)


@pytest.mark.parametrize('num_mix', [2, 3, 4])
@pytest.mark.parametrize('size', [24, 32])
def test_mix_equals_the_authors_package(monkeypatch, num_mix, size):
    """Bit for bit, for the same permutation; the targets where M divides T."""
    num_images, patch_size = 12, 4
    num_patches = (size // patch_size) ** 2
    images = torch.randn(num_images, 3, size, size)
    mixer = patchmix.PatchMix(num_images, prob=1.0, mix_num=num_mix, patch_size=patch_size)

    np.random.seed(7)
    random.seed(7)
    expected, to_source, to_mix = mixer(images.clone(), torch.arange(num_images))
    np.random.seed(7)
    permutation = np.arange(num_patches)
    np.random.shuffle(permutation)  # what the package does with numpy's generator
    monkeypatch.setattr(torch, 'randperm', lambda *_, **__: torch.from_numpy(permutation))
    groups = draw_groups(num_patches, num_mix)

    assert torch.equal(mix_patches(images, groups, patch_size), expected)
    if num_patches % num_mix == 0:
        torch.testing.assert_close(
            dense(mix_to_source(groups, num_mix), num_images).float(), to_source
        )
        torch.testing.assert_close(
            dense(mix_to_mix(groups, groups, num_mix), num_images).float(), to_mix
        )


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**31), st.data())
@settings(max_examples=150, deadline=None)
def test_targets_are_the_measured_overlap(num_patches, num_images, seed, data):
    """Any M, T and N, equal and unequal shares, wrap-around and empty groups included."""
    num_mix = data.draw(st.integers(1, num_patches))
    generator = torch.Generator().manual_seed(seed)
    alpha = data.draw(st.sampled_from([None, 0.3, 1.0]))
    torch.manual_seed(seed)
    groups, key_groups = (
        draw_groups(num_patches, num_mix, generator, alpha and mixing.draw_shares(num_mix, alpha))
        for _ in range(2)
    )
    origin = provenance(num_images, groups)  # (N, T)
    key_origin = provenance(num_images, key_groups)

    to_source = dense(mix_to_source(groups, num_mix), num_images)
    to_mix = dense(mix_to_mix(groups, key_groups, num_mix), num_images)
    for n in range(num_images):
        for m in range(num_images):
            share = (origin[n] == m).double().mean()
            torch.testing.assert_close(to_source[n, m], share, atol=1e-6, rtol=0)
            # Two patches drawn at random, one from each mix: do they share their image?
            same = (origin[n][:, None] == key_origin[m][None, :]).double().mean()
            torch.testing.assert_close(to_mix[n, m], same, atol=1e-6, rtol=0)
    ones = torch.ones(num_images, dtype=torch.float64)
    torch.testing.assert_close(to_source.sum(1), ones, atol=1e-6, rtol=0)
    torch.testing.assert_close(to_mix.sum(1), ones, atol=1e-6, rtol=0)


@pytest.mark.parametrize('shares', [None, (0.5, 0.3, 0.2), (1.0, 0.0, 0.0), (0.05, 0.05, 0.9)])
def test_groups_have_their_shares_rounded_down(shares):
    """Position by position along the permutation; what is left over belongs to group 0."""
    order = torch.randperm(17, generator=torch.Generator().manual_seed(3)).tolist()
    expected, used = [0] * 17, 0
    for group, share in enumerate(shares or (1 / 3,) * 3):
        for position in order[used : used + math.floor(17 * share)]:
            expected[position] = group
        used += math.floor(17 * share)
    drawn = None if shares is None else torch.tensor(shares)
    groups = draw_groups(17, 3, torch.Generator().manual_seed(3), drawn)
    assert groups.tolist() == expected


@pytest.mark.parametrize('shares', [(0.5, 0.5), (0.7, 0.7, -0.4), (0.3, 0.3, 0.3)])
def test_impossible_shares_are_refused(shares):
    with pytest.raises(ValueError, match='num_mix=3 numbers from 0 that sum to 1'):
        draw_groups(16, 3, shares=torch.tensor(shares))


def test_largest_share_is_swapped_with_the_first():
    torch.manual_seed(0)
    for _ in range(50):
        shares = mixing.draw_shares(4, 1.0)
        values = shares.tolist()
        largest = values.index(max(values))
        values[0], values[largest] = values[largest], values[0]
        assert mixing.with_largest_first(shares).tolist() == values


def test_number_of_images_patch_size_and_groups_must_fit():
    for num_mix in (0, -1, 17):
        with pytest.raises(ValueError, match='num_mix'):
            draw_groups(16, num_mix)
    with pytest.raises(ValueError, match='must divide the view of 30x32'):
        mix_patches(torch.zeros(2, 3, 30, 32), draw_groups(16, 2), 8)
    with pytest.raises(ValueError, match='have 16 positions'):
        mix_patches(torch.zeros(2, 3, 32, 32), draw_groups(15, 2), 8)


def test_the_file_needs_torch_alone(monkeypatch):
    for name in ('mmengine', 'mmpretrain', 'mmpatchmix', 'numpy'):
        monkeypatch.setitem(sys.modules, name, None)  # an import raises ImportError
    spec = importlib.util.spec_from_file_location('mixing_alone', mixing.__file__)
    alone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)
    groups = alone.draw_groups(num_patches=16, num_mix=2)
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(alone.mix_patches(images, groups, 2), mix_patches(images, groups, 2))
