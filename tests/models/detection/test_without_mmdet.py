import subprocess
import sys

CODE = """
import sys
from importlib.machinery import PathFinder

class NoMMDet(PathFinder):
    '''As in an environment where mmdet is not installed.'''
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split('.')[0] == 'mmdet' else super().find_spec(name, path, target)

sys.meta_path[:] = [NoMMDet if finder is PathFinder else finder for finder in sys.meta_path]
from mmpatchmix.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
assert MODELS.get('PatchMix') and MODELS.get('WindowedViT')
assert MODELS.get('FullPrecisionRPNHead') is None
assert OPTIM_WRAPPER_CONSTRUCTORS.get('DetectorLayerDecayConstructor')
assert OPTIM_WRAPPER_CONSTRUCTORS.get('LayerDecayConstructor')
assert not any(name.split('.')[0] == 'mmdet' for name in sys.modules)
"""


def test_pretraining_needs_no_mmdet():
    subprocess.run([sys.executable, '-c', CODE], check=True, timeout=120)
