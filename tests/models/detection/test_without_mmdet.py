import subprocess
import sys

import pytest

CODE = """
import sys
from mmpatchmix.models.mixing import draw_groups  # may be the first import
from mmpatchmix import registry

nodes = [each for each in vars(registry).values() if isinstance(each, registry.root.Registry)]
for node in nodes:
    node.import_from_location()
    node.get('mmpretrain.LARS')  # imports the modules of mmpretrain
assert registry.MODELS.get('PatchMix') and registry.MODELS.get('WindowedViT')
assert registry.MODELS.get('mmpretrain.ImageClassifier')
assert registry.OPTIM_WRAPPER_CONSTRUCTORS.get('LayerDecayConstructor')
unneeded = {name.split('.')[0] for name in sys.modules} & {'mmdet', 'mmseg'}
assert not unneeded, unneeded
"""


@pytest.mark.program
def test_pretraining_imports_neither_mmdet_nor_mmseg():
    """Whether they are installed or not; they take seconds."""
    subprocess.run([sys.executable, '-c', CODE], check=True, timeout=120)
