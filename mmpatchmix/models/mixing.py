"""PatchMix mixing and its soft targets, as pure tensor functions.

Source: https://arxiv.org/abs/2306.12243. This file needs torch alone, so it can be used without
the others::

    groups = draw_groups(num_patches=196, num_mix=2)
    mixed = mix_patches(images, groups, patch_size=16)
    offsets, weights = mix_to_source(groups, num_mix=2)

Notation: a batch holds ``N`` images of ``T = (H/p) * (W/p)`` patches of ``p`` pixels; ``M`` images
go into each mixed one. A *target* is a sparse row shared by the whole batch: with ``(offsets,
weights)``, query ``n`` matches image ``(n + offsets[i]) mod N`` with ``weights[i]``.
"""

import torch
from torch import Tensor

# (offsets, weights), both (K,): the sparse row of a soft target.
Target = tuple[Tensor, Tensor]


def draw_groups(
    num_patches: int,
    num_mix: int,
    generator: torch.Generator | None = None,
    shares: Tensor | None = None,
) -> Tensor:
    """Assign each patch position to one of ``M`` groups, by default of equal size.

    The first ``M * (T // M)`` positions of one random permutation form ``M`` equal groups, or the
    first ones form groups of ``floor(shares[j] * T)``; the others belong to group 0.

    Args:
        num_patches: ``T``, the number of patch positions of an image.
        num_mix: ``M``, the number of images in a mix, from 1 to ``T``.
        generator: Source of randomness on the CPU; torch's global one if None.
        shares: ``(M,)`` float, which sum to 1, of the groups (:func:`draw_shares`).

    Returns:
        Tensor: ``(T,)`` int64 on the CPU, the group ``0..M-1`` of each position, row by row.

    Raises:
        ValueError: If ``num_mix`` is below 1 or above ``num_patches``, or ``shares`` are not ``M``
            numbers from 0 that sum to 1.
    """
    if not 1 <= num_mix <= num_patches:
        raise ValueError(
            f'num_mix={num_mix} must be from 1 to the number of patches of a view, '
            f'{num_patches} here: use fewer images per mix, a smaller patch_size or larger crops.'
        )
    sizes = torch.full((num_mix,), num_patches // num_mix)
    if shares is not None:
        if shares.shape != (num_mix,) or shares.min() < 0 or abs(shares.sum() - 1) > 1e-5:
            raise ValueError(
                f'shares={shares} of a mix must be num_mix={num_mix} numbers from 0 that sum to 1.'
            )
        sizes = (shares * num_patches).long()  # rounded down
    permutation = torch.randperm(num_patches, generator=generator)
    groups = torch.zeros(num_patches, dtype=torch.int64)  # (T,)
    groups[permutation[: sizes.sum()]] = torch.arange(num_mix).repeat_interleave(sizes)
    return groups


def draw_shares(num_mix: int, alpha: float) -> Tensor:
    """Draw the shares ``(M,)`` of a mix from a symmetric Dirichlet distribution, float32.

    They come from torch's global generator and sum to 1; ``alpha=1`` is uniform. ``ValueError``
    if ``alpha`` is not above 0.
    """
    if not alpha > 0:
        raise ValueError(f'alpha={alpha} of the shares of a mix must be above 0.')
    if num_mix == 1:
        return torch.ones(1)  # sampled shares may sum to slightly less
    return torch.distributions.Dirichlet(torch.full((num_mix,), float(alpha))).sample()


def with_largest_first(shares: Tensor) -> Tensor:
    """Swap the largest of the shares ``(M,)`` with the first, that of the image itself."""
    order = torch.arange(len(shares))
    order[0], order[shares.argmax()] = int(shares.argmax()), 0
    return shares[order]


def mix_patches(images: Tensor, groups: Tensor, patch_size: int) -> Tensor:
    """Mix a batch: image ``n`` takes patch ``t`` of image ``(n + groups[t]) mod N``.

    Every patch stays at its position. Images are read and written once, whatever ``M`` is.

    Args:
        images: ``(N, C, H, W)``, any dtype and device; or ``(L, N, C, H, W)``, L batches, each
            mixed separately.
        groups: ``(T,)`` int64, the group of each position (:func:`draw_groups`); or ``(L, T)``.
        patch_size: ``p``, in pixels.

    Returns:
        Tensor: Shape, dtype and device of ``images``, new memory.

    Raises:
        ValueError: If the patch size or the number of groups does not fit the image.
    """
    num_images, channels, height, width = images.shape[-4:]
    if height % patch_size or width % patch_size:
        raise ValueError(
            f'the mixing patch_size={patch_size} must divide the view of {height}x{width} pixels: '
            'change patch_size of the data preprocessor or the crop size of the pipeline.'
        )
    rows, columns = height // patch_size, width // patch_size
    if groups.shape[-1] != rows * columns:
        raise ValueError(
            f'groups has {groups.shape[-1]} entries, but {height}x{width} pixels in patches of '
            f'{patch_size} have {rows * columns} positions.'
        )
    # A line of p pixels in a patch is contiguous: select among (L * N * C * rows * p * columns, p).
    batches = groups.view(-1, 1, rows * columns)  # (L, 1, T)
    image = torch.arange(num_images).to(groups)[:, None]
    batch = torch.arange(len(batches)).to(groups).view(-1, 1, 1)
    source = batch * num_images + (image + batches) % num_images  # (L, N, T)
    lines_per_image = channels * height * columns
    source = copy_to_device((source * lines_per_image).int(), images.device)
    line = torch.arange(lines_per_image, dtype=torch.int32, device=images.device)
    line = line.view(channels, rows, patch_size, columns)
    lines = source.view(len(batches), num_images, 1, rows, 1, columns) + line
    return images.reshape(-1, patch_size).index_select(0, lines.flatten()).view(images.shape)


def copy_to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a small tensor asynchronously; to CUDA devices through pinned memory."""
    if device.type == 'cuda' and values.device.type == 'cpu':
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def group_shares(groups: Tensor, num_mix: int) -> Tensor:
    """Compute the share of the positions in each group, ``(M,)`` float32; it sums to 1."""
    return groups.bincount(minlength=num_mix).float() / groups.numel()


def mix_to_source(groups: Tensor, num_mix: int) -> Target:
    """Compute the soft target of mixed images against their source images.

    Mixed ``n`` matches source ``(n + j) mod N`` with the share of group ``j``.

    Args:
        groups: ``(T,)`` int64, the groups of the mix.
        num_mix: ``M``.

    Returns:
        tuple: ``offsets`` ``(M,)`` int64 = ``0..M-1`` and ``weights`` ``(M,)`` float32, which sum
        to 1. Offsets that wrap onto the same image (``N < M``) add up.
    """
    return shares_to_source(group_shares(groups, num_mix))


def mix_to_mix(query_groups: Tensor, key_groups: Tensor, num_mix: int) -> Target:
    """Compute the soft target of mixed images against the images of another mix.

    Mixed ``n`` of one mix matches mixed ``(n + d) mod N`` of the other with ``sum over j - j' = d
    of share_j * share'_j'``, which is ``(1 - |d| / M) / M`` if all shares are equal.

    Args:
        query_groups: ``(T,)`` int64, the groups of the queries' mix.
        key_groups: ``(T',)`` int64, the groups of the keys' mix.
        num_mix: ``M``, the same in both mixes.

    Returns:
        tuple: ``offsets`` ``-(M-1)..(M-1)`` int64 and ``weights`` float32, each ``(2M-1,)``.
    """
    return shares_to_mix(group_shares(query_groups, num_mix), group_shares(key_groups, num_mix))


def shares_to_source(shares: Tensor) -> Target:
    """Compute :func:`mix_to_source` of any mix whose image ``n + j`` has ``shares[j]`` ``(M,)``."""
    return torch.arange(len(shares), device=shares.device), shares


def shares_to_mix(query_shares: Tensor, key_shares: Tensor) -> Target:
    """Compute :func:`mix_to_mix` of two mixes of ``M`` images with these shares, each ``(M,)``."""
    num_mix = len(query_shares)
    joint = torch.outer(query_shares, key_shares)  # (M, M), entry (j, j')
    index = torch.arange(num_mix, device=joint.device)
    difference = index[:, None] - index[None, :]  # j - j'
    weights = joint.new_zeros(2 * num_mix - 1)
    weights.index_add_(0, (difference + num_mix - 1).flatten(), joint.flatten())
    return torch.arange(1 - num_mix, num_mix, device=joint.device), weights
