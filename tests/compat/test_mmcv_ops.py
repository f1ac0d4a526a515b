"""Which ``mmcv._ext`` is imported, in this process and from a fresh interpreter."""

import subprocess
import sys
import sysconfig
import warnings
from importlib.machinery import PathFinder

import mmcv
import pytest

from mmpatchmix.compat import mmcv_ops, prepare_openmmlab

LIBRARY = '_ext' + sysconfig.get_config_var('EXT_SUFFIX')


def run(code):
    return subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=120
    )


def test_a_missing_ext_is_replaced_without_a_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        module = mmcv_ops.load_ext([str(tmp_path)])
    assert module.__file__ == str(mmcv_ops.REPLACEMENT)
    assert module.__name__ == mmcv_ops.NAME


def test_a_compiled_ext_that_works_is_used_and_executed_once(tmp_path):
    (tmp_path / '_ext.py').write_text(
        'import builtins\nbuiltins._ext_runs = getattr(builtins, "_ext_runs", 0) + 1\n'
        'def nms(*args): return "compiled"\n'
    )
    module = mmcv_ops.load_ext([str(tmp_path)])
    assert module.nms() == 'compiled'
    assert module.__file__ == str(tmp_path / '_ext.py')
    import builtins

    assert builtins.__dict__.pop('_ext_runs') == 1


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
    assert len(caught) == 1
    assert str(tmp_path / name) in str(caught[0].message)


def test_an_error_inside_a_compiled_ext_is_not_hidden(tmp_path):
    (tmp_path / '_ext.py').write_text('raise RuntimeError("driver too old")')
    with pytest.raises(RuntimeError, match='driver too old'):
        mmcv_ops.load_ext([str(tmp_path)])


def test_install_keeps_what_is_loaded():
    prepare_openmmlab()
    loaded = sys.modules[mmcv_ops.NAME]
    prepare_openmmlab()
    assert sys.modules[mmcv_ops.NAME] is loaded is mmcv._ext


def test_the_stack_imports_silently_for_the_command_line():
    done = run(
        'import mmpatchmix.registry\n'
        'from mmpatchmix.cli.verb import quiet_stack\n'
        'quiet_stack()\n'
        'import mmpretrain.models, mmpretrain.datasets, mmdet.apis\n'
    )
    assert (done.stdout, done.stderr) == ('', '')


def test_modules_imported_before_get_the_missing_ops():
    """Without compiled ops, mmdet defines functions that raise in their place."""
    done = run(
        'import sys\n'
        # Next to transformers 5 mmdet cannot be imported without it.
        'from mmpatchmix.compat import multimodal\n'
        'multimodal.install()\n'
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
