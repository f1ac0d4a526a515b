import subprocess
import sys
from importlib import metadata

from mmpatchmix.compat import multimodal


def test_mmpretrain_imports_whichever_transformers_is_installed():
    code = (
        'from mmpatchmix.compat import prepare_openmmlab\n'
        'prepare_openmmlab()\n'
        'from mmpretrain.models import VisionTransformer\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True, timeout=120)


def test_only_an_incompatible_transformers_switches_the_models_off(monkeypatch):
    from mmpretrain.utils import dependency

    found = {'4.57.1': True, '5.23.0': False}
    for version, expected in found.items():
        monkeypatch.setattr(dependency, 'WITH_MULTIMODAL', True)
        monkeypatch.setattr(multimodal, 'version', lambda name, version=version: version)
        multimodal.install()
        assert dependency.WITH_MULTIMODAL is expected


def test_without_transformers_nothing_is_touched(monkeypatch):
    from mmpretrain.utils import dependency

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(dependency, 'WITH_MULTIMODAL', 'untouched')
    monkeypatch.setattr(multimodal, 'version', missing)
    multimodal.install()
    assert dependency.WITH_MULTIMODAL == 'untouched'
