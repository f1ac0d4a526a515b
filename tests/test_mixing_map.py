"""The map of mixing: its images, its crops, its rates, and that it restarts."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / 'benchmarks'))
import gpu_evidence
import map_data
import map_run
import mixing_map
import runs

sys.path.pop(0)


@pytest.fixture
def parts():
    """Thirty images of three classes, which their mean tells apart."""
    torch.manual_seed(0)
    labels = torch.arange(30) % 3
    images = (torch.rand(30, 3, 32, 32) + labels[:, None, None, None]) * 80
    part = map_data.Part(images, labels)
    return dict(train=part, held_out=part, test=part)


def test_digits_that_choose_the_rate_are_not_trained_on():
    parts = map_data.load_digits(None)
    assert len(parts['train'].labels) == 1437 and len(parts['test'].labels) == 360
    reduced, held_out = parts['reduced'].images, parts['held_out'].images
    assert torch.equal(torch.cat([reduced, held_out]), parts['train'].images)
    assert parts['train'].images.max() == 255


def test_bands_are_five_of_twelve_bits_and_always_the_same():
    images = torch.rand(4, 3, 32, 32) * 255
    bands = map_data.to_bands(images)
    assert torch.equal(bands, map_data.to_bands(images))
    assert bands.shape == (4, 5, 32, 32) and bands.min() >= 0 and bands.max() <= 255
    levels = bands * (4095 / 255)
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    # Of an even image no band has a gradient, and brighter ones are brighter in every band.
    even = map_data.to_bands(torch.tensor([50.0, 100.0]).view(2, 1, 1, 1).expand(2, 3, 8, 8))
    assert (even == even[..., :1, :1]).all() and (even[0] < even[1]).all()


def test_crops_are_boxes_of_the_asked_area_at_all_places():
    """Of images that hold their own coordinates."""
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing='ij')
    crops = map_run.crop(torch.stack([x, y]).expand(500, 2, 32, 32), scale=(0.3, 0.5))
    inner = crops[..., 4:-4, 4:-4]  # away from the border, where a kernel is cut
    steps_x = inner[:, 0].diff(dim=-1).mean((1, 2))
    steps_y = inner[:, 1].diff(dim=-2).mean((1, 2))
    assert inner[:, 0].diff(dim=-2).abs().max() < 1e-3  # nothing is turned
    areas, aspects = steps_x * steps_y, steps_x / steps_y
    assert 0.29 < areas.min() < 0.32 and 0.48 < areas.max() < 0.51
    assert 0.74 < aspects.min() < 0.8 and 1.25 < aspects.max() < 1.35
    centres = crops.mean((2, 3))
    assert (centres.amin(0) < 11).all() and (centres.amax(0) > 20).all()


def test_same_images_in_the_same_order_whatever_is_mixed():
    orders = []
    for num_mix in (1, 3):
        setting = map_run.Setting('digits', 'none', num_mix, 7, steps=4, batch=8)
        order = map_run.draw_order(20, setting)
        orders.append([next(order).tolist() for _ in range(4)])
    assert orders[0] == orders[1]
    assert len({*orders[0][0], *orders[0][1]}) == 16  # an epoch has no image twice


def test_rate_is_the_best_on_held_out_images_of_one_or_of_two_images_per_mix():
    accuracy = {(1, 1e-3): 3.0, (1, 3e-3): 2.0, (1, 9e-3): 1.0}
    accuracy |= {(2, 1e-3): 1.0, (2, 3e-3): 5.0, (2, 9e-3): 4.0}
    where = dict(data='digits', level='none')
    lines = [
        where | dict(num_mix=m, lr=lr, knn=knn, is_tuning=True) for (m, lr), knn in accuracy.items()
    ]
    lines.append(where | dict(num_mix=2, lr=1.0, knn=9.0, is_tuning=False))
    for num_mix, lr in ((1, 1e-3), (2, 3e-3), (4, 3e-3)):
        setting = map_run.Setting('digits', 'none', num_mix, 0, steps=1)
        assert mixing_map.choose_rate(setting, lines).lr == lr
    assert mixing_map.choose_rate(setting, lines[:5]).lr is None


def test_every_part_compares_at_least_three_seeds_with_and_without_mixing():
    for name, settings in mixing_map.PLANS.items():
        seeds = {s.seed for s in settings if not s.is_tuning}
        assert len(seeds) >= 3, name
    assert len({mixing_map.digest(s) for s in mixing_map.PLANS['A-digits']}) == len(
        mixing_map.PLANS['A-digits']
    )


def test_finished_runs_are_not_run_again(parts, tmp_path, monkeypatch, capsys):
    plain = dict(data='chest', level='crops', seed=0, steps=2, batch=8, lr=1e-3)
    settings = [map_run.Setting(**plain, num_mix=m, finetunes=m == 2) for m in (1, 2)]
    settings[0] = map_run.Setting(**plain | dict(is_tuning=True), num_mix=1)
    monkeypatch.setattr(mixing_map, 'PLANS', dict(A=settings))
    monkeypatch.setattr(mixing_map, 'LOADERS', dict(chest=lambda _: parts))
    monkeypatch.setattr(map_run, 'LABELS', (2,))
    args = Namespace(plan=['A'], list=False, data=None, results=tmp_path / 'map.jsonl')
    mixing_map.work(args)
    lines = runs.read_results(args.results)
    assert [line['num_mix'] for line in lines] == [1, 2]
    assert [[step for step, _ in line['curve']] for line in lines] == [[0, 1, 2]] * 2
    assert lines[1].keys() >= {
        'knn',
        'linear',
        'labels2',
        'finetuned2',
        'share_error',
        'cpu_seconds',
    }
    assert 'labels2' not in lines[0] and lines[1]['encoded_views'] == 5 * 8 * 2
    mixing_map.work(args)
    assert runs.read_results(args.results) == lines
    assert capsys.readouterr().out.count('done ') == 2


def test_without_mixing_the_loss_is_that_of_moco_v3(parts):
    """The symmetric contrast of two views, each with the keys of the other."""
    setting = map_run.Setting('chest', 'full', 1, 0, steps=1)
    images = parts['train'].images
    model = map_run.build_model(map_run.build_config(setting), images, 0).train()
    model.update_momentum_encoder(0.5)
    views = map_run.make_views(images[:8], 'full')
    inputs = model.data_preprocessor(dict(inputs=views), training=True)['inputs']
    assert not torch.equal(inputs['view_1'], inputs['view_2'])
    assert torch.equal(inputs['mixed_view_2'], inputs['view_2'])
    losses = model.loss(inputs)
    total = sum(value for name, value in losses.items() if 'loss' in name)

    def contrast(query, key):
        q = model.head.predict(model.neck((model.backbone(query)[-1],))[0])
        momentum = model.momentum_encoder
        k = torch.nn.functional.normalize(momentum.neck((momentum.backbone(key)[-1],))[0], dim=1)
        return torch.nn.functional.cross_entropy(q @ k.T / 0.2, torch.arange(8))

    one, two = inputs['view_1'], inputs['view_2']
    torch.testing.assert_close(total, contrast(one, two) + contrast(two, one))


def test_gpu_evidence_is_complete_and_restarts(parts, tmp_path, monkeypatch):
    """On the CPU, with a narrow ViT."""
    arrays = {
        f'{split}_images': parts['train'].images.byte().movedim(1, -1).numpy()
        for split in map_data.SPLITS
    }
    arrays |= {f'{split}_labels': parts['train'].labels.numpy() for split in map_data.SPLITS}
    monkeypatch.setattr(gpu_evidence, 'read_photographs', lambda _: arrays)
    for name, value in dict(BATCH=8, EVERY=1, PROBE=1).items():
        monkeypatch.setattr(gpu_evidence, name, value)
    args = Namespace(
        data=Path('cifar10.tar.gz'), minutes=0.05, images=30, width=24, device='cpu',
        results=tmp_path / 'gpu.jsonl',
    )  # fmt: skip
    monkeypatch.setattr(gpu_evidence, 'RUNS', [('crops', 1), ('crops', 2)])
    gpu_evidence.compare(args)
    lines = runs.read_results(args.results)
    assert [line['num_mix'] for line in lines] == [1, 2]
    assert lines[0]['epochs'] == lines[1]['epochs'] >= 1
    assert [epoch for epoch, _ in lines[0]['curve']] == list(range(lines[0]['epochs'] + 1))
    gpu_evidence.compare(args)
    assert runs.read_results(args.results) == lines
