"""Which ``mmcv._ext`` is imported, and mmpretrain's vision-language models."""

import builtins
import subprocess
import sys
import sysconfig
import warnings
from importlib import metadata
from importlib.machinery import PathFinder

import mmcv
import pytest
from mmpretrain.utils import dependency

from mmpatchmix.compat import imports, mmcv_ops

LIBRARY = '_ext' + sysconfig.get_config_var('EXT_SUFFIX')


def run(code):
    return subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=120
    )


def test_a_missing_ext_is_replaced_without_a_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        module = mmcv_ops.load_ext([str(tmp_path)])
    assert (module.__file__, module.__name__) == (str(mmcv_ops.REPLACEMENT), mmcv_ops.NAME)


def test_a_compiled_ext_that_works_is_used_and_executed_once(tmp_path):
    (tmp_path / '_ext.py').write_text(
        'import builtins\nbuiltins._ext_runs = getattr(builtins, "_ext_runs", 0) + 1\n'
        'def nms(*args): return "compiled"\n'
    )
    module = mmcv_ops.load_ext([str(tmp_path)])
    assert module.nms() == 'compiled' and module.__file__ == str(tmp_path / '_ext.py')
    assert vars(builtins).pop('_ext_runs') == 1


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('_ext.py', 'raise ImportError("undefined symbol: _ZN2at4_ops5zeros4callE")'),
        (LIBRARY, 'not a shared object'),
    ],
)
def test_a_broken_compiled_ext_is_replaced_with_one_warning(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.warns(RuntimeWarning, match='built for another torch') as caught:
        module = mmcv_ops.load_ext([str(tmp_path)])
    assert module.__file__ == str(mmcv_ops.REPLACEMENT)
    assert len(caught) == 1 and str(tmp_path / name) in str(caught[0].message)


def test_an_error_inside_a_compiled_ext_is_not_hidden(tmp_path):
    (tmp_path / '_ext.py').write_text('raise RuntimeError("driver too old")')
    with pytest.raises(RuntimeError, match='driver too old'):
        mmcv_ops.load_ext([str(tmp_path)])


@pytest.mark.program
def test_modules_imported_before_get_the_missing_ops():
    """Without compiled ops, mmdet defines functions that raise in their place."""
    done = run(
        'import sys\n'
        # Next to transformers 5 mmdet cannot be imported without it.
        'from mmpatchmix.compat import imports\n'
        'imports.prepare_mmpretrain()\n'
        'try:\n'
        '    import mmdet.models\n'
        'except ImportError:\n'
        '    pass\n'
        'failed = "mmcv.ops" not in sys.modules\n'
        'from mmpatchmix.compat import prepare_openmmlab\n'
        'prepare_openmmlab()\n'
        'import mmcv.ops, mmdet.apis\n'
        'from mmdet.models.losses import focal_loss\n'
        'from mmdet.models.dense_heads import base_dense_head\n'
        'from mmdet.structures.mask import structures\n'
        'assert focal_loss._sigmoid_focal_loss is mmcv.ops.sigmoid_focal_loss\n'
        'assert base_dense_head.batched_nms is mmcv.ops.batched_nms\n'
        'assert structures.roi_align is mmcv.ops.roi_align\n'
        'print(failed)\n'
    )
    compiled = PathFinder.find_spec(mmcv_ops.NAME, mmcv.__path__) is not None
    assert done.stdout.splitlines()[-1] == str(not compiled)


@pytest.mark.parametrize(
    ('version', 'expected'), [('4.57.1', True), ('5.23.0', False), (None, True)]
)
def test_only_an_incompatible_transformers_disables_the_models(monkeypatch, version, expected):
    def find(name):
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(dependency, 'WITH_MULTIMODAL', True)
    monkeypatch.setattr(imports, 'version', find)
    imports.prepare_mmpretrain()
    assert dependency.WITH_MULTIMODAL is expected
