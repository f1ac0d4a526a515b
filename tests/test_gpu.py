"""Tests for a GPU; ``make gpu-check`` runs all tests with the marker ``gpu``.

Without a GPU those that compare devices compare the CPU with itself.
"""

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import distributed, nn

from mmpatchmix.engine import PatchMixDDP
from mmpatchmix.models.augment import colours, on_device
from mmpatchmix.models.augment.view_augment import ViewAugment
from tests.faults.processes import free_port
from tests.models.augment.plans import MEAN, STD, make_images
from tests.models.test_host_waits import AUGMENT
from tests.models.tiny import tiny_model, uint8_batch

pytestmark = pytest.mark.gpu
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
needs_gpu = pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU')


@pytest.fixture(autouse=True)
def float32_products():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('highest')
    yield
    torch.set_float32_matmul_precision(before)


def losses_on(device, bf16=False, **changes):
    """Compute the losses of the same views and mixes, and their gradients, on a device."""
    model = tiny_model(**changes).train().to(device)
    torch.manual_seed(1)
    inputs = tiny_model().data_preprocessor(uint8_batch(6, num_local=2), training=True)['inputs']
    move = lambda each: each.to(device) if isinstance(each, torch.Tensor) else each  # noqa: E731
    inputs = {name: move(each) for name, each in inputs.items()}
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=bf16):
        losses = model(inputs, mode='loss')
    model.parse_losses(losses)[0].backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return {name: value.item() for name, value in losses.items()}, gradient.cpu()


def test_losses_and_gradients_equal_those_of_the_cpu():
    """In bfloat16 the losses are near those in float32."""
    expected, gradient = losses_on('cpu')
    found, found_gradient = losses_on(DEVICE)
    assert found == pytest.approx(expected, abs=1e-3)
    assert torch.nn.functional.cosine_similarity(found_gradient, gradient, dim=0) > 0.999
    half, _ = losses_on(DEVICE, bf16=True)
    for name in ('loss_source', 'loss_mix_source', 'loss_mix_mix', 'loss_local', 'kl'):
        assert half[name] == pytest.approx(expected[name], rel=0.1), name


@needs_gpu
def test_compiled_losses_equal_eager_ones():
    eager, compiled = losses_on(DEVICE), losses_on(DEVICE, compile=True)
    assert compiled[0] == pytest.approx(eager[0], abs=1e-3)


@needs_gpu
def test_cuda_graphs_train_like_eager_steps():
    """Over several steps, since each overwrites outputs and gradients of the last one."""
    found = []
    for compile in (False, dict(mode='reduce-overhead')):
        model = tiny_model(compile=compile).train().to(DEVICE)
        trained = [p for p in model.parameters() if p.requires_grad]
        wrapper = OptimWrapper(torch.optim.SGD(trained, lr=0.05))
        losses = []
        for step in range(6):
            model.update_momentum_encoder(0.9)
            torch.manual_seed(step)
            batch = uint8_batch(6, num_local=2, seed=step)
            losses.append(model.train_step(batch, wrapper)['loss'].item())
        found.append(losses)
    assert found[1] == pytest.approx(found[0], rel=1e-2)


@needs_gpu
def test_step_does_not_synchronise_with_the_host():
    preprocessor = dict(
        type='mmpatchmix.PatchMixDataPreprocessor', patch_size=4, num_mix=[2, 3], augment=AUGMENT
    )
    model = tiny_model(data_preprocessor=preprocessor).train().to(DEVICE)
    wrapper = OptimWrapper(torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]))
    batch = uint8_batch(6, num_local=2)
    batch['inputs'] = {name: view.to(DEVICE) for name, view in batch['inputs'].items()}

    def step():
        model.update_momentum_encoder(0.9)
        with torch.autocast('cuda', dtype=torch.bfloat16):
            return model.train_step(batch, wrapper)

    for _ in range(3):
        step()  # compiles colours
    torch.cuda.set_sync_debug_mode('error')
    try:
        step()
        with pytest.raises(RuntimeError, match='synchroniz'):
            step()['loss'].item()
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('compiled', [False, pytest.param(True, marks=needs_gpu)])
def test_augmented_images_equal_those_of_the_cpu(compiled, monkeypatch):
    """Colours in half precision, rounded to within half a level; normalised by 1."""
    if not compiled:
        monkeypatch.setattr(colours, 'COMPILED_ON', ())
    torch.manual_seed(0)
    images = make_images(32)
    plan = ViewAugment(blur_prob=0.5, solarize_prob=0.0).draw(32, 20)
    expected = on_device.augment(images, plan, MEAN, STD)
    found = on_device.augment(images.to(DEVICE), plan, MEAN.to(DEVICE), STD.to(DEVICE))
    assert found.dtype == torch.float32
    difference = (found.cpu() - expected).abs()
    # Hue of nearly grey pixels, and what lies near it after a blur, may turn by more.
    assert difference.quantile(0.999) < 1 and difference.mean() < 0.1


def test_one_rank_trains_with_ddp_and_sync_batch_norm(monkeypatch):
    for name, value in dict(RANK=0, WORLD_SIZE=1, LOCAL_RANK=0, MASTER_ADDR='127.0.0.1').items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv('MASTER_PORT', str(free_port()))
    distributed.init_process_group('nccl' if DEVICE == 'cuda' else 'gloo')
    try:
        alone, together = (tiny_model().train().to(DEVICE) for _ in range(2))
        together = nn.SyncBatchNorm.convert_sync_batchnorm(together)
        trained = [[p for p in m.parameters() if p.requires_grad] for m in (alone, together)]
        # As mmengine's Runner wraps. An optimizer built before still trains the parameters.
        wrapped = PatchMixDDP(together, device_ids=[0], broadcast_buffers=False)
        is_synchronised = any(isinstance(m, nn.SyncBatchNorm) for m in wrapped.modules())
        assert is_synchronised == (DEVICE == 'cuda')
        assert wrapped.device_ids is None  # else targets go to the device and back
        assert wrapped.module.state_dict().keys() == alone.state_dict().keys()
        found = []
        for model, parameters in zip((alone, wrapped), trained, strict=True):
            wrapper = OptimWrapper(torch.optim.SGD(parameters, lr=0.1))
            batch = uint8_batch(6)
            torch.manual_seed(0)
            found.append([model.train_step(batch, wrapper)['loss'].item() for _ in range(3)])
        assert found[1] == pytest.approx(found[0], rel=1e-3)
        assert found[0][2] < found[0][0]
    finally:
        distributed.destroy_process_group()
