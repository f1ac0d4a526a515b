"""Preparation of images for a backbone, read from the metadata of its checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmpatchmix.checkpoints.reading import METADATA_KEY, read_config_text


@dataclass(frozen=True)
class Preprocessing:
    """The test view: resize, crop, and normalise values from 0 to 255."""

    resize: int  # pixels of the shorter side after the bicubic, antialiased resize
    crop: int  # pixels per side of the square cut from the middle
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)  # of each channel
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    values: str = 'RGB, from 0 to 255'  # description of channels and values

    def to(self, img_size: int) -> 'Preprocessing':
        """Return the same for another image size."""
        return replace(self, resize=self.resize * img_size // self.crop, crop=img_size)

    def to_transformers(self) -> dict[str, Any]:
        """Return the content of ``preprocessor_config.json``."""
        return dict(
            image_processor_type='BitImageProcessor',  # resizes the shorter side, then crops
            do_convert_rgb=True,
            **dict.fromkeys(('do_resize', 'do_center_crop', 'do_rescale', 'do_normalize'), True),
            size={'shortest_edge': self.resize},
            resample=3,  # PIL's number for bicubic
            crop_size={'height': self.crop, 'width': self.crop},
            rescale_factor=1 / 255,
            image_mean=[value / 255 for value in self.mean],
            image_std=[value / 255 for value in self.std],
        )


def read_preprocessing(meta: Mapping[str, Any], img_size: int) -> tuple[Preprocessing, str]:
    """Read the preprocessing of a checkpoint, and return the assumption that was made, or ''.

    Default are ImageNet's means and our test view for images of ``img_size`` pixels per side.
    """
    default = Preprocessing(resize=img_size * 256 // 224, crop=img_size)
    ours = (meta.get(METADATA_KEY) or {}).get('preprocessing')
    if isinstance(ours, dict):
        known = [key for key in Preprocessing.__dataclass_fields__ if key in ours]
        fields = {k: tuple(ours[k]) if isinstance(ours[k], list) else ours[k] for k in known}
        return Preprocessing(**fields).to(img_size), ''
    if isinstance(theirs := meta.get('preprocessor'), dict):
        values = {
            name: tuple(255 * value for value in theirs[key])
            for name, key in (('mean', 'image_mean'), ('std', 'image_std'))
            if theirs.get(key)
        }
        side = theirs.get('size')  # a square resize has the size of the crop
        if isinstance(side, dict):
            side = side.get('shortest_edge') or side.get('height')
        return replace(default, resize=max(int(side or img_size), img_size), **values), ''
    model = read_config_text(meta, 'model')
    stated = model.get('data_preprocessor') or read_config_text(meta, 'data_preprocessor')
    if not isinstance(stated, dict) or not stated.get('mean') or not stated.get('std'):
        return default, "mean and std of ImageNet (not in the file), the resize of this project's"
    values = {key: tuple(map(float, stated[key])) for key in ('mean', 'std')}
    dataset = read_config_text(meta, 'test_dataloader').get('dataset') or {}
    steps = [step for step in dataset.get('pipeline') or [] if isinstance(step, dict)]
    steps = {str(step.get('type')).rpartition('.')[2]: step for step in steps}
    if steps and 'ResizeCentre' not in steps:  # the default; without a resize images have the size
        values['resize'] = steps.get('ResizeEdge', {}).get('scale', img_size)
    if load := steps.get('LoadAnyImage'):
        values['values'] = (
            f'{len(values["mean"])} channels as in the file, of which value_range='
            f'{load.get("value_range", "dtype")!r} of mmpatchmix.LoadAnyImage became 0 to 255'
        )
    return replace(default, **values), ''
