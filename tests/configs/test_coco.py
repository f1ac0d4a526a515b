"""Detection configs train a step and predict; ground truth as prediction has an AP of 1."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import TRANSFORMS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from pycocotools.coco import COCO

from examples.digit_scenes import write_digit_scenes
from mmpatchmix.registry import MODELS
from tests.plain_runner import shrink

ROOT = Path(__file__).parents[2] / 'configs/coco'
DIGITS, VITDET = 'mask-rcnn_vit-digits_scenes.py', 'vitdet_vit-s_12e.py'
DINOV3 = dict(
    type='mmpatchmix.TimmViT',
    model='vit_small_patch16_dinov3',
    out_type='featmap',
    out_indices=[1, 2, 3],
    options=dict(depth=4, embed_dim=96, num_heads=3, patch_size=8),
)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp('scenes')
    write_digit_scenes(root, num_train=4, num_val=4)
    return root


def small(name, scenes, work_dir, width=48):
    """Return a config with narrow networks, 64 pixels and few boxes."""
    cfg = Config.fromfile(ROOT / name)
    shrink(cfg, None, scenes, width)
    if name == VITDET:
        cfg.model.backbone.use_rel_pos = True
    cfg.model.train_cfg.rcnn.sampler.num = 16
    for nms in (cfg.model.train_cfg.rpn_proposal, cfg.model.test_cfg.rpn):
        nms.max_per_img = 20
    cfg.work_dir = str(work_dir)
    return cfg


# The others differ in widths, which are reduced here, and in schedules.
@pytest.mark.parametrize('name', [DIGITS, VITDET, 'timm'])
def test_config_trains_a_step_and_predicts(name, scenes, tmp_path):
    cfg = small(DIGITS if name == 'timm' else name, scenes, tmp_path)
    if name == 'timm':
        cfg.model.backbone = DINOV3
    runner = Runner.from_cfg(cfg)
    runner._init_model_weights()
    wrapper = runner.build_optim_wrapper(runner.cfg.optim_wrapper)
    before = {key: value.clone() for key, value in runner.model.named_parameters()}
    torch.manual_seed(0)
    losses = runner.model.train_step(next(iter(runner.train_dataloader)), wrapper)
    expected = {'loss', 'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'acc', 'loss_bbox'}
    assert losses.keys() - {'loss_mask'} == expected
    assert all(torch.isfinite(torch.as_tensor(value)) for value in losses.values())
    # AdamW moves all parameters that have a gradient.
    moved = [k for k, v in runner.model.named_parameters() if not torch.equal(v, before[k])]
    assert any(re.match(r'backbone\.(layers|model\.blocks)\.0\.attn\.qkv', key) for key in moved)
    assert any(re.match(r'backbone\.(model\.)?patch_embed', key) for key in moved)

    runner.model.eval()
    with torch.no_grad():
        results = runner.model.test_step(next(iter(runner.test_dataloader)))
    assert len(results) == 4
    for result in results:
        found = result.pred_instances
        assert found.masks.shape == (len(found.bboxes), 128, 128)
        assert ((found.scores >= 0) & (found.scores <= 1)).all()


def test_bfloat16_step_is_near_the_float32_step(scenes, tmp_path):
    """As with ``--amp``: half-precision layers, full-precision boxes."""
    # Rounding errors average out over the width of the heads.
    cfg = small(VITDET, scenes, tmp_path, width=96)
    cfg.optim_wrapper.type = 'mmpatchmix.BF16OptimWrapper'
    runner = Runner.from_cfg(cfg)
    runner._init_model_weights()
    batch = next(iter(runner.train_dataloader))
    model = runner.model.eval()  # without drop path
    data = model.data_preprocessor(batch, True)
    losses = []
    for enabled in (False, True):
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            found = model.rpn_head.loss(model.extract_feat(data['inputs']), data['data_samples'])
        losses.append({key: sum(value).item() for key, value in found.items()})
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    wrapper = runner.build_optim_wrapper(cfg.optim_wrapper)
    result = model.train_step(batch, wrapper)
    assert all(torch.isfinite(torch.as_tensor(value)) for value in result.values())


def test_vitdet_is_as_published():
    cfg = Config.fromfile(ROOT / 'vitdet_vit-b_100e.py')
    cfg.model.backbone.use_rel_pos = True
    init_default_scope('mmdet')
    with torch.device('meta'):
        backbone = MODELS.build(cfg.model.backbone)
    assert [layer.attn.window_size for layer in backbone.layers] == [14, 14, 0] * 4
    heights = [len(layer.attn.rel_pos_h) for layer in backbone.layers]
    assert heights == [2 * 14 - 1, 2 * 14 - 1, 2 * 64 - 1] * 4
    assert cfg.train_cfg.max_epochs * cfg.train_dataloader.dataset.times == 100


@MODELS.register_module()
class Oracle(torch.nn.Module):
    """A detector that returns the annotations, in pixels of the file."""

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


def test_the_recipe_of_mgc_is_as_published():
    """Its figures, and the sizes that its pipeline yields."""
    cfg = Config.fromfile(ROOT / 'mask-rcnn_vit-s_fpn_mgc_1x.py')
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    assert {group['lr'] for group in groups} == {7.5e-5}
    decays = {id(group['params'][0]): group['weight_decay'] for group in groups}
    for name, parameter in model.named_parameters():
        free = re.search(r'\.ln\d|norms|resize\.0\.1|cls_token|pos_embed', name)
        assert decays[id(parameter)] == (0.0 if free else 0.03), name
    assert {m.drop_prob for m in model.modules() if hasattr(m, 'drop_prob')} == {0.0}
    warmup, steps = cfg.param_scheduler
    assert (warmup.end, steps.milestones, cfg.train_cfg.max_epochs) == (1000, [8, 11], 12)
    resize_or_crop = TRANSFORMS.build(cfg.train_dataloader.dataset.pipeline[3])
    seen = set()
    for seed in range(40):
        np.random.seed(seed)
        image = np.zeros((600, 800, 3), np.uint8)
        results = resize_or_crop(dict(img=image, img_shape=image.shape[:2]))
        height, width = results['img'].shape[:2]
        seen.add(height if height * 4 == width * 3 else 'cropped')
        assert min(height, width) in range(480, 801, 32) or max(height, width) == 1333
    assert 'cropped' in seen and seen & {480, 800}
