import warnings

from mmpatchmix.compat import prepare_openmmlab, quiet

prepare_openmmlab()


def test_exactly_the_listed_prints_are_dropped(capsys):
    from mmengine.logging import print_log

    for message in quiet.PRINTED:
        print_log(message)
    print_log('Could not import OneDL: the disk is full')
    print_log('epoch 1')
    assert capsys.readouterr().out == 'Could not import OneDL: the disk is full\nepoch 1\n'


def test_exactly_the_listed_warnings_are_dropped():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for message in quiet.WARNED:
            warnings.filterwarnings('ignore', message=message)
        warnings.warn('faster_coco_eval is not installed, metrics will not be computed. Please')
        warnings.warn('faster_coco_eval is too old')
    assert [str(warning.message) for warning in caught] == ['faster_coco_eval is too old']


def test_install_twice_wraps_once():
    import mmengine.logging

    before = mmengine.logging.print_log
    quiet.install()
    assert mmengine.logging.print_log is before
