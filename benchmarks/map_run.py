"""One run of the map of mixing: the model, the training, the evaluation."""

import copy
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from harness import CONFIGS
from map_data import SIDE, Part
from mmengine.config import Config
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from mmpatchmix.engine.schedules import cosine_momentum
from mmpatchmix.evaluation.features import evaluation_mode
from mmpatchmix.evaluation.knn import knn_predict
from mmpatchmix.evaluation.similarity import calibrate, predict_shares
from mmpatchmix.models.mixing import copy_to_device
from mmpatchmix.registry import MODELS

CONFIG = CONFIGS / 'patchmix_vit-s_cifar10.py'
PATCH = 8  # pixels, of the ViT and of the mix
ARCH = dict(embed_dims=64, num_layers=3, num_heads=2, feedforward_channels=128)
WARM_UP = 0.1  # of the steps
LABELS = (10, 20, 50, 100)  # per class
OFF = dict(color_jitter=None, grayscale_prob=0.0, blur_prob=0.0, solarize_prob=0.0)
FLIP = dict(type='mmpatchmix.ViewAugment', flip_prob=0.5, **OFF)
CHANGES = {
    'no-source': dict(loss_weights=dict(source=0)),
    'no-mix-source': dict(loss_weights=dict(mix_source=0)),
    'no-mix-mix': dict(loss_weights=dict(mix_mix=0)),
    **{f'tau-{tau}': dict(head=dict(mix_temperature=tau)) for tau in (0.1, 0.4)},
    **{
        name: dict(data_preprocessor=dict(mixing=dict(type=f'mmpatchmix.{name}')))
        for name in ('mix_up', 'cut_mix', 'resize_mix')
    },
}


@dataclass(frozen=True)
class Setting:
    """What a run does; ``lr`` is per 64 images, None the best of the runs that tune it."""

    data: str
    level: str  # of augmentation: none, crops, crops+flip, full
    num_mix: int
    seed: int
    steps: int
    alpha: float | None = None  # of the shares of a mix; None: equal shares
    batch: int = 64
    images: int | None = None  # the first ones of the training images
    change: str | None = None  # of CHANGES
    lr: float | None = None
    is_tuning: bool = False  # evaluated on held-out training images
    finetunes: bool = False


def build_config(setting: Setting, num_channels: int = 3) -> dict:
    """Return the config of the model: that of the CIFAR-10 recipe, smaller."""
    model = Config.fromfile(CONFIG).model
    model.backbone.update(img_size=SIDE, patch_size=PATCH, in_channels=num_channels)
    model.backbone.update(arch=ARCH, drop_path_rate=0.0)
    model.neck.update(hid_channels=256, out_channels=128)
    model.head.predictor.update(hid_channels=256, out_channels=128)
    shares = 'equal' if setting.alpha is None else dict(alpha=setting.alpha)
    model.data_preprocessor.update(patch_size=PATCH, num_mix=setting.num_mix, shares=shares)
    if setting.level != 'full':
        flips = setting.level == 'crops+flip'
        model.data_preprocessor.augment = dict(view_1=FLIP, view_2=FLIP) if flips else dict()
    config = Config(dict(model=model))
    config.merge_from_dict(dict(model=CHANGES.get(setting.change, {})))
    return config.model.to_dict()


def run(setting: Setting, parts: dict[str, Part]) -> dict:
    """Train and evaluate; return the figures for the line of the results."""
    bank = parts.get('reduced', parts['train']) if setting.is_tuning else parts['train']
    bank = bank.take(slice(setting.images))
    queries = parts['held_out' if setting.is_tuning else 'test']
    model = build_model(build_config(setting, bank.images.shape[1]), bank.images, setting.seed)
    curve, seconds, began = [], 0.0, time.process_time()
    for step in train(model.train(), bank.images, setting):
        if step % max(1, setting.steps // 10) == 0 and step < setting.steps:
            seconds += time.process_time() - began
            curve.append(
                (step, classify_by_neighbours(encode(model, bank), encode(model, queries)))
            )
            print(f'    step {step}: kNN {curve[-1][1]:.1f}', flush=True)
            began = time.process_time()
    seconds = round(seconds + time.process_time() - began, 1)
    found = judge(model, bank, queries, setting)
    curve.append((setting.steps, found['knn']))
    views = 5 * setting.batch * setting.steps  # two queries and three keys of each image
    return dict(cpu_seconds=seconds, encoded_views=views, curve=curve) | found


def build_model(config: dict, images: Tensor, seed: int) -> nn.Module:
    """Build the model with the mean and standard deviation of the images, initialised."""
    mean, std = images.mean((0, 2, 3)).tolist(), images.std((0, 2, 3)).tolist()
    config['data_preprocessor'].update(mean=mean, std=std)
    torch.manual_seed(seed)
    model = MODELS.build(config)
    model.init_weights()
    return model


def train(model: nn.Module, images: Tensor, setting: Setting, autocast=nullcontext):
    """Train; yield the number of steps before the first step and after each."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        dict(params=[p for p in trained if p.ndim > 1], weight_decay=0.04),
        dict(params=[p for p in trained if p.ndim <= 1], weight_decay=0.0),
    ]
    peak = setting.lr * setting.batch / 64
    optimizer = torch.optim.AdamW(groups, lr=peak, fused=True)
    order = draw_order(len(images), setting)
    momentum = max(0.0, 1 - 30 / max(1, setting.steps))  # averages over a thirtieth of the run
    yield 0
    for step in range(setting.steps):
        for group in optimizer.param_groups:
            group['lr'] = peak * schedule(step, setting.steps)
        model.update_momentum_encoder(cosine_momentum(step, setting.steps, momentum))
        chosen = copy_to_device(next(order), images.device)
        views = make_views(images[chosen], setting.level)
        with autocast():
            inputs = model.data_preprocessor(dict(inputs=views), training=True)['inputs']
            losses = model.loss(inputs)
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        optimizer.step()
        optimizer.zero_grad()
        yield step + 1


def schedule(step: int, num_steps: int) -> float:
    """Return the factor of the rate: linear warm-up, then half a cosine."""
    warm_up = max(1, round(WARM_UP * num_steps))
    if step < warm_up:
        return step / warm_up
    return (1 + math.cos(math.pi * (step - warm_up) / (num_steps - warm_up))) / 2


def draw_order(num_images: int, setting: Setting):
    """Yield the images of each step, the same for all objectives of a seed."""
    generator = torch.Generator().manual_seed(setting.seed)
    while True:
        rows = torch.randperm(num_images, generator=generator)
        yield from rows[: num_images // setting.batch * setting.batch].split(setting.batch)


def make_views(images: Tensor, level: str) -> dict[str, Tensor]:
    """Return two views of each image ``(N, C, H, W)``: the image itself, or random crops."""
    views = [images, images] if level == 'none' else [crop(images), crop(images)]
    return dict(zip(('view_1', 'view_2'), views, strict=True))


def crop(images: Tensor, scale: tuple[float, float] = (0.2, 1.0)) -> Tensor:
    """Cut a random box of this share of the area out of each image, and resize it, bicubic."""
    area, aspect, *place = torch.rand(4, len(images))
    area = scale[0] + (scale[1] - scale[0]) * area
    aspect = (4 / 3) ** (2 * aspect - 1)
    sides = [(area * factor).sqrt().clamp(max=1) for factor in (aspect, 1 / aspect)]
    theta = torch.zeros(len(images), 2, 3)
    for axis, (side, share) in enumerate(zip(sides, place, strict=True)):
        theta[:, axis, axis], theta[:, axis, 2] = side, (2 * share - 1) * (1 - side)
    theta = copy_to_device(theta, images.device)
    grid = F.affine_grid(theta, images.shape, align_corners=False)
    settings = dict(mode='bicubic', padding_mode='border', align_corners=False)
    return F.grid_sample(images, grid, **settings).clamp(0, 255)


@torch.no_grad()
def encode(model: nn.Module, part: Part) -> Part:
    """Return the features ``(N, D)`` of images and their labels."""
    with evaluation_mode(model):
        prepared = (
            model.data_preprocessor(dict(inputs=images)) for images in part.images.split(512)
        )
        features = [model.extract_feat(batch['inputs']).float().cpu() for batch in prepared]
    return Part(torch.cat(features), part.labels)


def classify_by_neighbours(bank: Part, queries: Part) -> float:
    """Return the accuracy of kNN, k = 20, in percent: the mean over the classes."""
    classes = knn_predict(queries.images, bank.images, bank.labels, (20,))[20][:, 0]
    return 100 * balanced_accuracy_score(queries.labels, classes)


def judge(model: nn.Module, bank: Part, queries: Part, setting: Setting) -> dict:
    """Return the accuracies of kNN and of logistic regression on few labels and on all."""
    known, asked = encode(model, bank), encode(model, queries)
    found = dict(knn=classify_by_neighbours(known, asked)) | regress(known, asked)
    for count in () if setting.is_tuning else LABELS:
        draws = [draw_labelled(bank.labels, count, seed) for seed in range(3)]
        each = [regress(known.take(rows), asked)['linear'] for rows in draws]
        found[f'labels{count}'] = sum(each) / len(each)
        if setting.finetunes:
            found[f'finetuned{count}'] = finetune(model, bank.take(draws[0]), queries, setting)
    if not setting.is_tuning and not setting.change:
        images = model.data_preprocessor(dict(inputs=queries.images[:128]))['inputs']
        calibration = calibrate(*predict_shares(model, images, 2, num_draws=16))
        found |= {f'share_{name}': calibration[name] for name in ('error', 'correlation')}
    return found


def draw_labelled(labels: Tensor, count: int, seed: int) -> Tensor:
    """Return indices of ``count`` images of each class."""
    generator = torch.Generator().manual_seed(seed)
    members = [(labels == label).nonzero().flatten() for label in labels.unique()]
    return torch.cat([m[torch.randperm(len(m), generator=generator)[:count]] for m in members])


def regress(known: Part, asked: Part) -> dict:
    """Return the accuracy of logistic regression, and of two classes the area under the ROC."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(known.images.numpy(), known.labels.numpy())
    features, labels = asked.images.numpy(), asked.labels.numpy()
    found = dict(linear=100 * balanced_accuracy_score(labels, model.predict(features)))
    if len(model.classes_) == 2:
        found['linear_auroc'] = 100 * roc_auc_score(labels, model.decision_function(features))
    return found


def finetune(model: nn.Module, known: Part, asked: Part, setting: Setting, num_steps=150) -> float:
    """Train a copy of the backbone and a linear layer with few labels; return the accuracy."""
    backbone = copy.deepcopy(model.momentum_encoder.backbone).requires_grad_(True)
    layer = nn.Linear(backbone.embed_dims, int(known.labels.max()) + 1)
    parameters = [*backbone.parameters(), *layer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05, fused=True)
    for step in range(num_steps):
        optimizer.param_groups[0]['lr'] = 1e-3 * schedule(step, num_steps)
        rows = torch.randint(len(known.labels), (setting.batch,))
        images = make_views(known.images[rows], setting.level)['view_1']
        images = model.data_preprocessor(dict(inputs=images))['inputs']
        F.cross_entropy(layer(backbone(images)[-1]), known.labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        images = model.data_preprocessor(dict(inputs=asked.images))['inputs']
        classes = [layer(backbone(part)[-1]).argmax(1) for part in images.split(512)]
    return 100 * balanced_accuracy_score(asked.labels, torch.cat(classes))
