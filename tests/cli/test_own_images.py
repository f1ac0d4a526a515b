"""Own images before training: description, checks, contact sheet, statistics."""

import cv2
import numpy as np
import pytest
from mmengine.runner import Runner
from PIL import Image

from mmpatchmix.cli import stats
from mmpatchmix.cli.arguments import set_data_root
from mmpatchmix.cli.check_run import check_run, run_one_step
from mmpatchmix.cli.describe_run import describe_images, describe_run
from mmpatchmix.cli.embed import set_images
from mmpatchmix.datasets import ImageFolder
from mmpatchmix.datasets.decode_image import DecodedImage
from mmpatchmix.datasets.survey import as_rgb8, survey_images
from mmpatchmix.evaluation import extract_features
from mmpatchmix.report.sheets import draw_views, save_picture, to_array
from tests.cli.parts import build_parts, get_refusal
from tests.datasets.any_images import as_npy, as_png, as_tiff, make_noise
from tests.datasets.folders import PIPELINE, make_classes, make_folder
from tests.datasets.shards import make_shards
from tests.engine.tiny_run import tiny_run_config


def make_microscope(root, num=24, channels=5):
    """12-bit images of several channels, each about twice as bright as the one before."""
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(num):
        shape = (40 + number, 50, channels)
        values = rng.integers(0, 128, shape) * 2 ** np.arange(channels)
        values = values.astype(np.uint16)
        planar = dict(planarconfig='contig') if channels > 1 else {}
        content = as_tiff(values.squeeze(), photometric='minisblack', **planar)
        (root / f'{number:02d}.tif').write_bytes(content)
    return root


def own_images_config(tmp_path, root, channels, size=16, values='0,4095'):
    """The tiny run on images of any kind."""
    load = dict(type='mmpatchmix.LoadAnyImage', channels=channels, value_range=values)
    crops = dict(type='mmpatchmix.MultiCrop', global_size=size, num_local=2, local_size=8)
    resize = dict(type='mmpatchmix.ResizeCentre', size=size)
    images = dict(type='mmpatchmix.ImageFolder', data_root=str(root), _delete_=True)
    pack, test_pack = dict(type='mmpatchmix.PackViews'), dict(type='PackInputs')
    tested = dict(images, split='val', pipeline=[load, resize, test_pack], test_mode=True)
    augment = dict(type='mmpatchmix.ViewAugment')
    preprocessor = dict(mean=[20.0] * channels, std=[20.0] * channels, to_rgb=False, patch_size=4)
    preprocessor['augment'] = dict.fromkeys(('view_1', 'view_2', 'local_views'), augment)
    cfg = tiny_run_config(tmp_path / 'run', num_images=None)
    cfg.merge_from_dict({
        'train_dataloader.dataset': dict(images, split='train', pipeline=[load, crops, pack]),
        'val_dataloader.dataset': tested,
        'test_dataloader.dataset': tested,
        'val_cfg.bank_dataloader.dataset': tested,
        'model.backbone': dict(in_channels=channels, img_size=size, patch_size=4),
        'model.data_preprocessor': preprocessor,
    })  # fmt: skip
    cfg.test_cfg = cfg.val_cfg
    return cfg


@pytest.mark.parametrize('size', [16, (16, 32)], ids=str)
def test_five_channels_take_a_real_step_and_are_described(tmp_path, size):
    root = make_microscope(tmp_path / 'images')
    cfg = own_images_config(tmp_path, root, 5, size)
    stats.set_stats(cfg)
    runner = Runner.from_cfg(cfg)
    check_run(runner)
    text = '\n'.join(describe_run(runner)[0])
    assert '24 x 5 channels uint16' in text and '40 x 50 to 63 x 50 pixels' in text
    assert 'none: images lie in no folder' in text and 'mean, std     [' in text
    assert '--stats auto' not in text
    result = run_one_step(runner)
    assert 0.2 < result['loss_local'] < 20
    assert runner.model.backbone.patch_embed.projection.weight.shape == (12, 5, 4, 4)
    set_images(cfg, str(root))  # as embed does
    features = extract_features(runner.model, runner.build_dataloader(cfg.test_dataloader)).features
    assert features.shape == (24, 12) and features.isfinite().all()
    assert (features[0] - features[1]).abs().max() > 1e-6
    if size == (16, 32):
        assert '2 of 16x32 and 2 of 8' in text
        assert runner.model.backbone.pos_embed.shape[1] == 1 + 4 * 8
    figure = draw_views(runner, num_images=3)
    assert len(figure.axes) == 3 * 8 and '5 channels, shown: 3' in figure.get_suptitle()
    assert to_array(figure).std() > 10


def test_the_contact_sheet_keeps_colours(tmp_path):
    colours = [(200, 30, 60), (20, 180, 40), (90, 60, 220)]
    for number, colour in enumerate(colours * 4):
        Image.new('RGB', (30, 30), colour).save(tmp_path / f'{number:02d}.png')
    cfg = own_images_config(tmp_path, tmp_path, 3, values='dtype')
    cfg.model.data_preprocessor.augment = {}
    runner = Runner.from_cfg(cfg)
    figure = draw_views(runner, num_images=12)
    for column, colour in enumerate(colours * 4):
        shown = figure.axes[column].images[0].get_array()
        np.testing.assert_allclose(shown.mean((0, 1)) * 255, colour, atol=0.01)
    with pytest.raises(ValueError, match=r'must end in \.png'):
        save_picture(figure, tmp_path / 'sheet.pdf')


def test_different_image_shapes_and_channels_are_refused(tmp_path):
    root = make_microscope(tmp_path / 'images')
    cfg = own_images_config(tmp_path, root, 5)
    cfg.model.backbone.img_size = (16, 32)
    message = get_refusal(cfg)
    assert 'view_1 is 16x16 pixels' in message and 'img_size=16x32' in message
    cfg = own_images_config(tmp_path, root, 5, (16, 32))
    cfg.val_dataloader.dataset.pipeline[1].size = 16
    assert 'the test view (val_dataloader) is 16x16' in get_refusal(cfg)
    cfg = own_images_config(tmp_path, root, 5)
    cfg.model.backbone.in_channels = 3
    assert 'channels of model.backbone.in_channels=3' in get_refusal(cfg)
    cfg = own_images_config(tmp_path, root, 5)
    cfg.model.data_preprocessor.update(mean=[1.0] * 4, std=[1.0] * 4)
    assert 'channels of len(model.data_preprocessor.mean)=4' in get_refusal(cfg)
    message = get_refusal(own_images_config(tmp_path, root, 3))
    assert '5 channels of' in message and 'the config says channels=3' in message


def folder_config(tmp_path, root, **train):
    cfg = own_images_config(tmp_path, root, 3, values='dtype')
    cfg.train_dataloader.dataset.update(train)
    return cfg


def test_colours_that_are_rgb_already_are_not_reversed(tmp_path):
    cfg = folder_config(tmp_path, make_classes(tmp_path / 'images', 40))
    cfg.model.data_preprocessor.to_rgb = True
    assert 'to_rgb=True reverses RGB of LoadAnyImage: set to_rgb=False' in get_refusal(cfg)


def test_evaluation_of_trained_images_and_of_unknown_classes_is_refused(tmp_path):
    root = make_classes(tmp_path / 'images', 40)
    check_run(build_parts(folder_config(tmp_path, root)))
    num_val = len(ImageFolder(str(root), split='val'))
    same_folder = dict(labels=False, data_root=f'{root}/../images')
    for options in (dict(labels=False), dict(split=None), same_folder):
        message = get_refusal(folder_config(tmp_path, root, **options))
        assert f'{num_val} of the {num_val} images of val_dataloader are trained on too' in message
    (tmp_path / 'link').symlink_to(root / 'ant')
    message = get_refusal(folder_config(tmp_path, root, data_root=str(tmp_path / 'link')))
    assert 'are trained on too' in message
    make_classes(root / 'train', 8)
    make_classes(root / 'val', 4, ('ant', 'dog'))
    message = get_refusal(folder_config(tmp_path, root))
    assert 'has images of dog, and the classes of the training set' in message
    make_shards(tmp_path / 'shards', 40, per_shard=20)  # with labels, but without names
    cfg = folder_config(tmp_path, root)
    set_data_root(cfg, str(tmp_path / 'shards'))
    check_run(build_parts(cfg))


def test_lost_depth_and_other_statistics_give_a_note(tmp_path):
    make_microscope(tmp_path / 'images', num=3, channels=1)
    (tmp_path / 'images/x.png').write_bytes(as_png(make_noise((20, 20, 3))))
    (tmp_path / 'images/broken.png').write_bytes(b'no image')
    facts = describe_images(ImageFolder(str(tmp_path / 'images'), pipeline=PIPELINE))
    assert facts['kinds'].startswith('3 x 1 channel uint16, 1 x 3 channels uint8  <- this recipe')
    assert facts['damaged'].startswith('1 of 5 sampled, such as ')
    assert 'broken.png (not an image, or an incomplete one)' in facts['damaged']
    cfg = own_images_config(tmp_path, make_microscope(tmp_path / 'other'), 5)
    cfg.model.data_preprocessor.update(mean=[127.5] * 5, std=[127.5] * 5)
    parts = build_parts(cfg)
    facts = describe_images(parts.train_dataloader.dataset, parts.model.data_preprocessor)
    assert '--stats auto sets them' in facts['mean, std']


def test_stats_equal_those_of_the_pixels(tmp_path, capsys):
    root = make_microscope(tmp_path / 'images', num=7)
    (root / 'bad.tif').write_bytes(b'no image')
    (root / 'grey.tif').write_bytes(as_tiff(np.zeros((9, 9), np.uint16)))
    stats.main([str(root)])
    text = capsys.readouterr().out
    assert '9 images, a sample of 9' in text
    assert '7 x 5 channels uint16, 1 x 1 channel uint16' in text
    assert 'bad.tif' in text and '1 do not fit, such as ' in text
    # 127 * 16 = 2032 needs 11 bits.
    assert 'PATCHMIX_CHANNELS=5 PATCHMIX_VALUES=0,2047' in text
    import tifffile

    images = [tifffile.imread(root / f'{n:02d}.tif') * (255 / 2047) for n in range(7)]
    mean = np.mean([img.mean((0, 1)) for img in images], 0)
    std = np.sqrt(np.mean([(img**2).mean((0, 1)) for img in images], 0) - mean**2)
    for name, expected in (('mean', mean), ('std ', std)):
        (line,) = (line for line in text.splitlines() if line.startswith(f'  {name} '))
        np.testing.assert_allclose(eval(line[7:]), expected, atol=0.006)


def test_stats_suggest_values(tmp_path, capsys):
    for values, suggested in (
        (make_noise((9, 9, 3)), 'dtype'),
        (np.linspace(-1, 3, 81).reshape(9, 9), '-1,3'),
        (np.arange(81, dtype=np.int16).reshape(9, 9) - 40, '-40,40'),
        (np.linspace(-4738.1, 0.1, 81, dtype=np.float32).reshape(9, 9), '-4738.1'),
        (np.arange(81, dtype=np.int32).reshape(9, 9) + 1_234_567, '1234567,1234647'),
    ):
        (tmp_path / 'a.npy').write_bytes(as_npy(values))
        stats.main([str(tmp_path)])
        text = capsys.readouterr().out
        assert f'PATCHMIX_VALUES={suggested}' in text and 'do not fit' not in text
    for wrong in (['--values', '2,1'], ['--channels', '4'], ['--sample', '0']):
        with pytest.raises(SystemExit):
            stats.main([str(tmp_path), *wrong])


def test_stats_auto_reads_images_as_the_recipe_does(tmp_path):
    root = make_folder(tmp_path / 'images', *(f'{n}.png' for n in range(6)))
    cfg = folder_config(tmp_path, root)
    stats.set_stats(cfg)
    rgb = np.stack([cv2.imread(str(root / f'{n}.png'))[:, :, ::-1] for n in range(6)]) / 1.0
    np.testing.assert_allclose(cfg.model.data_preprocessor.mean, rgb.mean((0, 1, 2)), atol=0.006)
    np.testing.assert_allclose(cfg.model.data_preprocessor.std, rgb.std((0, 1, 2)), atol=0.006)
    cfg.train_dataloader.dataset.pipeline[0] = dict(type='LoadImageFromFile')
    for to_rgb, step in ((True, 1), (False, -1)):  # in the order in which it is normalised
        cfg.model.data_preprocessor.to_rgb = to_rgb
        stats.set_stats(cfg)
        expected = rgb.mean((0, 1, 2))[::step]
        np.testing.assert_allclose(cfg.model.data_preprocessor.mean, expected, atol=0.006)
    # OpenCV reads the first page of a TIFF, and values of 0 and 1 as 0 and 255.
    pages = as_tiff(make_noise((3, 20, 20)), photometric='minisblack')
    (root / 'pages.tif').write_bytes(pages)
    bits = make_noise((8, 20, 20))[0] > 100
    (root / 'bits.tif').write_bytes(as_tiff(bits, photometric='minisblack'))
    survey = survey_images([f'{root}/pages.tif', f'{root}/bits.tif'], as_rgb8)
    assert 'uint8 of 3 channels or pages needs' in survey.unfit[0][1]
    with pytest.raises(OSError, match='needs mmpatchmix'):  # OpenCV cannot read it
        as_rgb8(DecodedImage(bits.astype(np.uint8)[:, :, None], 0, 1), b'no image')
    assert survey.mean_and_std()[0] == pytest.approx([255 * bits.mean()] * 3, abs=0.01)
    with pytest.raises(ValueError, match=r'this config trains on mmpatchmix\.Digits'):
        stats.set_stats(tiny_run_config(tmp_path))
