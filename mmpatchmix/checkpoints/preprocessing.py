"""What has to be done to an image before a backbone sees it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from mmpatchmix.checkpoints.reading import METADATA_KEY
from mmpatchmix.checkpoints.vit_spec import read_config_text

# PIL's number for bicubic, in files of Hugging Face transformers.
_BICUBIC = 3


@dataclass(frozen=True)
class Preprocessing:
    """The test view: resize, crop, and normalise values from 0 to 255.

    Attributes:
        resize: Pixels of the shorter side after the bicubic, antialiased resize.
        crop: Pixels per side of the square cut from the middle.
        mean: Of each channel, subtracted.
        std: Of each channel, divided by.
        values: What they are, in words.
    """

    resize: int
    crop: int
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    values: str = 'RGB, from 0 to 255'

    def to(self, img_size: int) -> 'Preprocessing':
        """Return the same for another image size."""
        if img_size == self.crop:
            return self
        return replace(self, resize=self.resize * img_size // self.crop, crop=img_size)

    def as_dict(self) -> dict[str, Any]:
        """Return what ``*.preprocessing.json`` says, in words that need no documentation."""
        said = asdict(self)
        values = said.pop('values')
        return said | {
            'interpolation': 'bicubic, antialiased',
            'channels': f'{values}; (value - mean) / std',
            'input': f'float32 (N, {len(self.mean)}, {self.crop}, {self.crop})',
        }

    def to_transformers(self) -> dict[str, Any]:
        """Return ``preprocessor_config.json``."""
        return dict(
            image_processor_type='BitImageProcessor',  # shorter side, then a crop: as for DINOv2
            do_convert_rgb=True,
            do_resize=True,
            size={'shortest_edge': self.resize},
            resample=_BICUBIC,
            do_center_crop=True,
            crop_size={'height': self.crop, 'width': self.crop},
            do_rescale=True,
            rescale_factor=1 / 255,
            do_normalize=True,
            image_mean=[value / 255 for value in self.mean],
            image_std=[value / 255 for value in self.std],
        )


def read_preprocessing(meta: Mapping[str, Any], img_size: int) -> tuple[Preprocessing, str]:
    """Read off what a checkpoint says; ImageNet's means and our test view otherwise.

    Args:
        meta: See :class:`~mmpatchmix.checkpoints.Checkpoint`.
        img_size: Pixels per side of the image that the positions are for.

    Returns:
        tuple: The preprocessing, and what had to be assumed, perhaps nothing.
    """
    default = Preprocessing(resize=img_size * 256 // 224, crop=img_size)
    if isinstance(said := (meta.get(METADATA_KEY) or {}).get('preprocessing'), dict):
        sizes, values = ('resize', 'crop'), ('mean', 'std')
        text = {key: said[key] for key in ('values',) if key in said}
        said = text | {key: said[key] for key in sizes} | {k: tuple(said[k]) for k in values}
        return Preprocessing(**said).to(img_size), ''
    if isinstance(said := meta.get('preprocessor'), dict):
        return _from_transformers(said, default), ''
    model = read_config_text(meta, 'model')
    said = model.get('data_preprocessor') or read_config_text(meta, 'data_preprocessor')
    if not isinstance(said, dict) or not said.get('mean') or not said.get('std'):
        return default, "mean and std of ImageNet (not in the file), the resize of this project's"
    values = {key: tuple(map(float, said[key])) for key in ('mean', 'std')}
    dataset = (read_config_text(meta, 'test_dataloader') or {}).get('dataset') or {}
    pipeline = [step for step in dataset.get('pipeline') or [] if isinstance(step, dict)]
    kinds = {str(step.get('type')).rpartition('.')[2]: step for step in pipeline}
    if pipeline and 'ResizeCentre' not in kinds:  # which is the default
        # Without a resize, of images that have their size.
        values['resize'] = kinds.get('ResizeEdge', {}).get('scale', img_size)
    if load := kinds.get('LoadAnyImage'):
        kind = load.get('value_range', 'dtype')
        values['values'] = (
            f'{len(values["mean"])} channels as in the file, of which value_range={kind!r} of '
            'mmpatchmix.LoadAnyImage became 0 to 255'
        )
    return replace(default, **values), ''


def _from_transformers(said: Mapping[str, Any], default: Preprocessing) -> Preprocessing:
    """Read ``preprocessor_config.json``; a square resize is the crop at once."""
    values = {
        name: tuple(255 * value for value in said[key])
        for name, key in (('mean', 'image_mean'), ('std', 'image_std'))
        if said.get(key)
    }
    size = said.get('size')
    size = size if isinstance(size, dict) else {'height': size}
    side = size.get('shortest_edge') or size.get('height') or default.crop
    return replace(default, resize=max(int(side), default.crop), **values)
