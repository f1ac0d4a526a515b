"""Every operation, in both places, against torchvision's; and one place against the other."""

import itertools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torchvision.transforms.v2 import functional as F

from mmpatchmix.models.augment import colours, on_cpu, on_device
from mmpatchmix.models.augment.view_augment import ViewAugment
from tests.models.augment.plans import MEAN, STD, AsOnCuda, make_images, make_jitter, make_plan, run

PLACES = pytest.mark.parametrize(
    'place', [on_cpu, on_device, AsOnCuda], ids=['cpu', 'device', 'fused']
)
ORDERS = pytest.mark.parametrize('is_bgr', [False, True], ids=['rgb', 'bgr'])
# Grey weighs red by 0.299 (ITU-R BT.601) here, by 0.2989 in torchvision: 0.026 of a level.
GREY = 0.028
ROUNDING = 0.501  # of whole levels, on the CPU

NAMES = ('brightness', 'contrast', 'saturation', 'hue')
ADJUST = {name: getattr(F, f'adjust_{name}') for name in NAMES}


def assert_near(ours: torch.Tensor, exact: torch.Tensor, tolerance: float) -> None:
    """``exact`` lies in [0, 1], ``ours`` in [0, 255], the tolerance is in levels."""
    difference = (ours.double() - 255 * exact.double()).abs().max()
    assert difference <= tolerance, f'{difference} levels'


@PLACES
@ORDERS
@pytest.mark.parametrize(
    ('name', 'values', 'tolerances'),
    [
        ('brightness', [0.6, 1.0, 1.37], (ROUNDING, 1e-3)),
        ('contrast', [0.6, 1.0, 1.37], (ROUNDING + GREY, GREY)),
        # OpenCV mixes channels in fixed point.
        ('saturation', [0.0, 0.8, 1.0, 1.2], (1.0, GREY)),
        ('hue', [-0.5, -0.1, -0.01, 0.0, 0.03, 0.1, 0.5], (ROUNDING, 2e-3)),
    ],
)
def test_jitter_equals_torchvision(place, is_bgr, name, values, tolerances):
    images = make_images(len(values))
    out = run(place, images, make_jitter(name, values), is_bgr)
    for image, result, value in zip(images, out, values, strict=True):
        expected = ADJUST[name](image.float() / 255, value)
        assert_near(result, expected, tolerances[place is not on_cpu])
        if value != (0 if name == 'hue' else 1):
            assert (result - image).abs().max() > 1, 'nothing happened'


@PLACES
def test_every_image_is_jittered_in_its_own_order(place):
    order = [*itertools.permutations(range(4)), (0, 1, 2, 3)]
    jitter = [True] * 12 + [False] + [True] * 12
    images = make_images(25)
    generator = torch.Generator().manual_seed(0)
    factors = torch.rand(25, 4, generator=generator) * 0.8 + 0.6
    factors[:, 3] = (factors[:, 3] - 1) / 4
    plan = make_plan(25, jitter=jitter, order=order, factors=factors)
    out = run(place, images, plan)
    for row, image in enumerate(images):
        expected = image.float() / 255
        for number in order[row] if jitter[row] else ():
            expected = ADJUST[NAMES[number]](expected, factors[row, number].item())
            if place is on_cpu:
                expected = (255 * expected).round() / 255
        if place is not on_cpu:
            assert_near(out[row], expected, 2 * GREY)  # enlarged by later operations
        else:
            # Saturation in fixed point may be a level off, and so may what follows.
            assert (out[row] - 255 * expected).abs().mean() < 0.2
    # Another order would have shown.
    assert (run(place, images, plan._replace(order=plan.order.flip(1))) - out).abs().mean() > 2


@PLACES
@ORDERS
def test_grey_and_flip_equal_torchvision(place, is_bgr):
    images = make_images(3)
    plan = make_plan(3, grey=[True, False, False], flip=[False, True, False])
    out = run(place, images, plan, is_bgr)
    tolerance = GREY if place is not on_cpu else ROUNDING + GREY
    assert_near(out[0], F.rgb_to_grayscale(images[0].float() / 255, 3), tolerance)
    assert torch.equal(out[1], F.horizontal_flip(images[1]).float())
    assert torch.equal(out[2], images[2].float())


@PLACES
@pytest.mark.parametrize(('size', 'side'), [((24, 20), 3), ((64, 50), 9), ((224, 224), 23)])
def test_blur_equals_torchvision(place, size, side):
    sigmas = [0.1, 0.31, 1.0, 2.0]
    images = make_images(5, *size)
    plan = make_plan(5, blur=[True] * 4 + [False], sigma=[*sigmas, 1.0], blur_side=side)
    out = run(place, images, plan)
    for image, result, sigma in zip(images, out, sigmas, strict=False):
        expected = F.gaussian_blur(image.float() / 255, [side, side], [sigma, sigma])
        # On the CPU rounding, and the tail beyond four sigma: 6e-5 of 255 per direction.
        assert_near(result, expected, 2e-3 if place is not on_cpu else 0.54)
    assert torch.equal(out[4], images[4].float())


@PLACES
@ORDERS
@pytest.mark.parametrize('threshold', [0, 64, 128, 255])
def test_solarize_equals_torchvision_on_every_level(place, is_bgr, threshold):
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    # As the settings say it: a share of full scale.
    settings = ViewAugment(solarize_threshold=threshold / 255).draw(2, 16)
    plan = make_plan(2, solarize=[False, True], solarize_from=settings.solarize_from)
    out = run(place, images, plan, is_bgr)
    assert torch.equal(out[0], images[0].float())
    assert torch.equal(out[1], F.solarize(images[1], threshold=threshold).float())


@PLACES
def test_operations_run_in_torchvisions_usual_order(place):
    """Jitter, grey, blur, solarize; flip commutes with all of them."""
    images = make_images(6)
    every = [True] * 6
    factors = [[0.7, 1.3, 0.9, 0.08]] * 6
    plan = make_plan(
        6, flip=every, jitter=every, factors=factors, grey=every, blur=every, solarize=every
    )
    out = run(place, images, plan)
    expected = images.float() / 255
    for adjust, factor in zip(ADJUST.values(), factors[0], strict=True):
        expected = adjust(expected, factor)
    expected = F.gaussian_blur(F.rgb_to_grayscale(expected, 3), [3, 3], [1.0, 1.0])
    near = (255 * expected - 128).abs() < 3  # either side of the threshold may be right
    keep = ~F.horizontal_flip(near)
    expected = F.horizontal_flip(F.solarize(expected, 128 / 255))
    assert keep.float().mean() > 0.8
    assert_near(out[keep], expected[keep], 0.1 if place is not on_cpu else 3)


@PLACES
def test_normalisation_is_part_of_it(place):
    images = make_images(2)
    mean, std = torch.tensor([10.0, 20, 30]).view(3, 1, 1), torch.tensor([2.0, 4, 5]).view(3, 1, 1)
    out = place.augment(images, make_plan(2), mean, std)
    torch.testing.assert_close(out, (images - mean) / std, rtol=1e-6, atol=1e-5)


@PLACES
@pytest.mark.parametrize('num', [0, 1, 5])
def test_any_number_and_memory_layout(place, num):
    images = make_images(num, 16, 16)
    last = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    torch.manual_seed(0)
    plan = ViewAugment(blur_prob=0.5, solarize_prob=0.5).draw(num, 16)
    assert torch.equal(run(place, images, plan), run(place, last, plan))


def test_threads_change_nothing(monkeypatch):
    images, outs = make_images(7), []
    torch.manual_seed(0)
    plan = ViewAugment(blur_prob=0.5, solarize_prob=0.5).draw(7, 20)
    for num_threads in (1, 3, 16):
        monkeypatch.setattr(torch, 'get_num_threads', lambda n=num_threads: n)
        outs.append(run(on_cpu, images, plan))
    assert all(torch.equal(outs[0], out) for out in outs[1:])


def test_autocast_changes_the_type_and_nothing_else_on_the_device():
    images = make_images(12)
    torch.manual_seed(0)
    plan = ViewAugment(blur_prob=1.0, solarize_prob=0.5).draw(12, 20)
    expected = run(on_device, images, plan)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = on_device.augment(images, plan, MEAN, STD)
    assert torch.equal(out, expected.bfloat16())  # as the first layer would have it


@pytest.fixture
def compiler(monkeypatch):
    """A compiler for CPU cores, and how often it was asked for a graph."""
    counter = CompileCounterWithBackend('eager')
    compiled = torch.compile(colours.apply, dynamic=False, fullgraph=True, backend=counter)
    monkeypatch.setattr(colours, 'COMPILED_ON', ('cpu',))
    monkeypatch.setattr(colours, '_works', True)
    monkeypatch.setattr(colours, '_compile', lambda: compiled)
    torch._dynamo.reset()
    yield counter
    torch._dynamo.reset()


def test_one_graph_whatever_is_drawn(compiler):
    torch.manual_seed(0)
    augment = ViewAugment(blur_prob=0.5)
    images = make_images(6, 16, 16)
    for _ in range(3):
        plan = augment.draw(6, 16)
        with torch.no_grad():
            out = on_device.augment(images, plan, MEAN, STD)
            expected = AsOnCuda.augment(images, plan, MEAN, STD)
        torch.testing.assert_close(out, expected)
    assert compiler.frame_count == 1


def test_a_failing_compiler_is_logged_once_and_replaced_by_eager_colours(compiler, monkeypatch):
    calls = []

    def no_compiler(*args):
        calls.append(args)
        raise RuntimeError('Failed to find C compiler. Please specify via CC\nTriton says more')

    logged = []
    monkeypatch.setattr(colours, '_compile', lambda: no_compiler)
    monkeypatch.setattr(colours, 'print_log', lambda text, *rest: logged.append(text))
    images = make_images(6)
    plan = ViewAugment().draw(6, 20)
    outs = [on_device.augment(images, plan, MEAN, STD) for _ in range(2)]
    monkeypatch.setattr(colours, 'COMPILED_ON', ())
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], on_device.augment(images, plan, MEAN, STD))
    assert len(calls) == len(logged) == 1
    assert '(Failed to find C compiler. Please specify via CC)' in logged[0]
