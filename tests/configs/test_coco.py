"""Every detection config builds, trains a step and predicts; the test path gives AP 1 to truth."""

import copy
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from pycocotools.coco import COCO

from mmpatchmix.datasets.digits import write_digit_scenes
from mmpatchmix.models.detection import WindowedViT
from mmpatchmix.registry import MODELS

ROOT = Path(__file__).parents[2] / 'configs/coco'
CONFIGS = sorted(path.name for path in ROOT.glob('*.py'))
DIGITS = 'mask-rcnn_vit-digits_scenes.py'


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp('scenes')
    write_digit_scenes(root, num_train=4, num_val=4)
    return root


def read(name):
    return copy.deepcopy(read_once(name))


@functools.cache
def read_once(name):
    """mmdet's bases are looked up in a large index each time, which takes a second."""
    return Config.fromfile(ROOT / name)


def small(name, scenes, work_dir):
    """A config with its structure and little else: narrow, 64 pixels, few boxes."""
    cfg, digits = read(name), read(DIGITS)
    cfg.model.train_cfg.rcnn.sampler.num = 16
    cfg.model.roi_head.bbox_head.fc_out_channels = 16
    if name != DIGITS:
        heads = cfg.model.backbone.arch.num_heads
        cfg.model.backbone.arch.update(embed_dims=2 * heads, feedforward_channels=8)
        cfg.model.data_preprocessor.pad_size_divisor = 64
        for neck in cfg.model.neck if isinstance(cfg.model.neck, list) else [cfg.model.neck]:
            channels = neck.in_channels
            neck.in_channels = [2 * heads] * 4 if isinstance(channels, list) else 2 * heads
        cfg.model.train_cfg.rpn_proposal.max_per_img = 20
        cfg.model.test_cfg.rpn.max_per_img = 20
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset = dataset.get('dataset', dataset)  # behind RepeatDataset
        shrink(dataset.pipeline)
        ours = digits[f'{split}_dataloader'].dataset
        for key in ('ann_file', 'data_prefix', 'metainfo'):
            dataset[key] = ours[key]
        dataset.data_root = str(scenes)
        dataset.filter_cfg = {}
        cfg[f'{split}_dataloader'].update(batch_size=2, num_workers=0, persistent_workers=False)
    annotations = str(scenes / 'annotations/instances_val.json')
    cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = annotations
    cfg.work_dir = str(work_dir)
    return cfg


def shrink(pipeline):
    for transform in pipeline:
        for key in ('scale', 'crop_size'):
            if key in transform:
                transform[key] = (64, 64)


@pytest.mark.parametrize('name', CONFIGS)
def test_config_trains_a_step_and_predicts(name, scenes, tmp_path):
    cfg = small(name, scenes, tmp_path)
    runner = Runner.from_cfg(cfg)
    runner._init_model_weights()
    wrapper = runner.build_optim_wrapper(cfg.optim_wrapper)
    before = {key: value.clone() for key, value in runner.model.named_parameters()}
    torch.manual_seed(0)
    batch = next(iter(runner.train_dataloader))
    losses = runner.model.train_step(batch, wrapper)
    expected = {'loss', 'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'acc', 'loss_bbox'}
    assert losses.keys() - {'loss_mask'} == expected
    assert all(torch.isfinite(torch.as_tensor(value)) for value in losses.values())
    # AdamW moves what has a gradient; a backbone that is cut off would stay.
    moved = [k for k, v in runner.model.named_parameters() if not torch.equal(v, before[k])]
    assert any(key.startswith('backbone.layers.0.attn.qkv') for key in moved)
    assert any(key.startswith('backbone.patch_embed') for key in moved)

    runner.model.eval()
    with torch.no_grad():
        results = runner.model.test_step(next(iter(runner.test_dataloader)))
    assert len(results) == 2
    for result in results:
        found = result.pred_instances
        assert found.masks.shape == (len(found.bboxes), 128, 128)
        assert ((found.scores >= 0) & (found.scores <= 1)).all()


@pytest.mark.parametrize('name', ['mask-rcnn_vit-s_fpn_1x.py', 'vitdet_vit-s_rel-pos_12e.py'])
def test_a_step_in_bfloat16_is_near_the_one_in_float32(name, scenes, tmp_path):
    """What ``--amp`` makes of these configs: half-precision layers, full-precision boxes."""
    cfg = small(name, scenes, tmp_path)
    runner = Runner.from_cfg(cfg)
    runner._init_model_weights()
    batch = next(iter(runner.train_dataloader))
    model = runner.model.eval()  # without drop path; heads have nothing that differs
    data = model.data_preprocessor(batch, True)
    losses = {}
    for half in (False, True):
        with torch.autocast('cpu', torch.bfloat16, enabled=half):
            found = model.rpn_head.loss(model.extract_feat(data['inputs']), data['data_samples'])
        losses[half] = {key: sum(value).item() for key, value in found.items()}
    for key, value in losses[False].items():
        assert losses[True][key] == pytest.approx(value, rel=0.02)

    cfg.optim_wrapper.type = 'mmpatchmix.BF16OptimWrapper'
    wrapper = runner.build_optim_wrapper(cfg.optim_wrapper)
    result = runner.model.train_step(batch, wrapper)
    assert all(torch.isfinite(torch.as_tensor(value)) for value in result.values())


def test_the_list_of_configs_is_complete():
    assert {name for name in CONFIGS if name.startswith('vitdet')} == {
        f'vitdet_vit-{size}{position}_{length}.py'
        for size in 'sb'
        for position in ('', '_rel-pos')
        for length in ('12e', '100e')
    }


@pytest.mark.parametrize('size', ['s', 'b'])
def test_vitdet_is_as_published(size):
    cfg = read(f'vitdet_vit-{size}_rel-pos_100e.py')
    init_default_scope('mmdet')
    backbone = MODELS.build(cfg.model.backbone)
    assert isinstance(backbone, WindowedViT)
    assert [layer.attn.window_size for layer in backbone.layers] == [14, 14, 0] * 4
    heights = [len(layer.attn.rel_pos_h) for layer in backbone.layers]
    assert heights == [2 * 14 - 1, 2 * 14 - 1, 2 * 64 - 1] * 4
    repeated = cfg.train_dataloader.dataset.times
    assert cfg.train_cfg.max_epochs * repeated == 100


@MODELS.register_module()
class Oracle(torch.nn.Module):
    """A detector that knows the annotation file; boxes and masks in pixels of the file."""

    def __init__(self, ann_file, data_preprocessor):
        super().__init__()
        self.api = COCO(ann_file)
        self.data_preprocessor = MODELS.build(data_preprocessor)

    def test_step(self, data):
        samples = self.data_preprocessor(data)['data_samples']
        for sample in samples:
            known = self.api.imgToAnns[sample.img_id]
            boxes = np.array([one['bbox'] for one in known])
            boxes[:, 2:] += boxes[:, :2]
            sample.pred_instances = InstanceData(
                bboxes=torch.tensor(boxes, dtype=torch.float32),
                labels=torch.tensor([one['category_id'] - 1 for one in known]),
                scores=torch.ones(len(known)),
                masks=torch.tensor(np.stack([self.api.annToMask(one) for one in known])).bool(),
            )
        return samples


def test_ground_truth_as_prediction_has_ap_1(scenes, tmp_path):
    cfg = small(DIGITS, scenes, tmp_path)
    cfg.model = dict(
        type='mmpatchmix.Oracle',
        ann_file=cfg.test_evaluator.ann_file,
        data_preprocessor=cfg.model.data_preprocessor,
    )
    metrics = Runner.from_cfg(cfg).test()
    assert metrics['coco/bbox_mAP'] == 1.0
    assert metrics['coco/segm_mAP'] == 1.0
