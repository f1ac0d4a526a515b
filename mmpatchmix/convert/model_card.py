"""The card beside a checkpoint in Hugging Face's form: what it is, where from, how to use it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpatchmix import __version__
from mmpatchmix.checkpoints.preprocessing import Preprocessing
from mmpatchmix.checkpoints.vit_spec import ViTSpec

CARD = """---
library_name: transformers
pipeline_tag: image-feature-extraction
tags:
- vit
- self-supervised
---

# {name}

A Vision Transformer that turns an image into {spec.embed_dims} numbers: width {spec.embed_dims},
{spec.num_layers} layers, {spec.num_heads} heads, patches of {spec.patch_size} pixels, images of
{spec.img_size}. It has no classifier. mmpatchmix {version} wrote it.

## Use

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained('{name}')
model = AutoModel.from_pretrained('{name}', add_pooling_layer=False).eval()
inputs = processor(Image.open('image.jpg'), return_tensors='pt')
with torch.no_grad():
    features = model(**inputs).last_hidden_state[:, 0]  # (1, {spec.embed_dims}), the class token
```

Images are resized to {resize} pixels on the shorter side (bicubic), cut to {crop} in the middle,
and normalised by mean {mean} and standard deviation {std} of values from 0 to 255.

## Where it is from

{facts}

Features of this folder, computed by transformers, and those of the source differ by at most
{difference:.1e} on random images.

## Not known to the converter

What images it was trained on and what they allow, what it is good for and what not, and the
licence of the weights. Fill them in before you publish it.
"""


def write_model_card(
    folder: Path,
    spec: ViTSpec,
    preprocessing: Preprocessing,
    source: Mapping[str, Any],
    meta: Mapping[str, Any],
    difference: float,
) -> None:
    """Write ``README.md`` into a folder of transformers.

    Args:
        folder: With the weights.
        spec: Size of the network.
        preprocessing: What has to be done to images.
        source: ``source``, ``layout`` and ``encoder``.
        meta: What the source says about its training, see
            :class:`~mmpatchmix.checkpoints.Checkpoint`.
        difference: Largest difference of a feature that was found.
    """
    facts = {
        'file': source['source'],
        'layout': source['layout'],
        'encoder': source['encoder'] or 'the only one',
        'epochs': meta.get('epoch'),
        'iterations': meta.get('iter'),
        'trained until': meta.get('time'),
    }
    text = CARD.format(
        name=folder.name,
        spec=spec,
        version=__version__,
        resize=preprocessing.resize,
        crop=preprocessing.crop,
        mean=_show(preprocessing.mean),
        std=_show(preprocessing.std),
        facts='\n'.join(f'- {key}: {value}' for key, value in facts.items() if value),
        difference=difference,
    )
    Path(folder, 'README.md').write_text(text, encoding='utf-8')


def _show(values: tuple[float, ...]) -> str:
    return ', '.join(f'{value:g}' for value in values)
