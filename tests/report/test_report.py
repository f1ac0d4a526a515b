"""Scalars, figures of mixes, comparison of runs, and the summary of the hook."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from matplotlib import colormaps
from PIL import Image

from mmpatchmix.models import draw_groups, mix_patches, mix_to_source
from mmpatchmix.report.report import (
    compare,
    describe_progress,
    format_table,
    name_runs,
    write_report,
)
from mmpatchmix.report.run_record import flatten, read_run, read_scalars
from mmpatchmix.report.run_report_hook import RunReportHook
from mmpatchmix.report.sheets import draw_contact_sheet, draw_mixed, to_array


def test_mixed_figure_shows_the_source_of_each_patch_and_the_target():
    num_images, patch_size = 4, 4
    images = torch.rand(num_images, 3, 12, 16)
    groups = draw_groups(12, 3, torch.Generator().manual_seed(1))
    mixed = mix_patches(images, groups, patch_size)
    figure = draw_mixed(images, mixed, groups, patch_size, mix_to_source(groups, 3))
    axes = np.array(figure.axes).reshape(4, num_images)
    for n in range(num_images):
        np.testing.assert_allclose(axes[0, n].images[0].get_array(), images[n].permute(1, 2, 0))
        np.testing.assert_allclose(axes[1, n].images[0].get_array(), mixed[n].permute(1, 2, 0))
        colours = axes[2, n].images[0].get_array()
        numbers = {text.get_position(): text.get_text() for text in axes[2, n].texts}
        shares = np.zeros(num_images)
        for row in range(3):
            for column in range(4):
                patch = np.s_[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                # From the pixels, not from the groups.
                (source,) = (m for m in range(4) if torch.equal(mixed[n][patch], images[m][patch]))
                assert numbers[(column, row)] == str(source)
                shares[source] += 1 / 12
                np.testing.assert_allclose(colours[row, column], colormaps['tab10'](source)[:3])
        heights = [bar.get_height() for bar in axes[3, n].patches]
        np.testing.assert_allclose(heights, shares, atol=1e-6)
    assert to_array(figure).std() > 10
    figure = draw_mixed(images, images, None, 4)
    assert len(figure.axes) == 8 and 'PatchMix' not in figure.get_suptitle()


def write_scalars(work_dir, name, records):
    folder = work_dir / name / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(json.dumps(record) for record in records))
    return folder


def test_scalars_of_a_resumed_run_are_joined_and_incomplete_lines_left_out(tmp_path):
    def step(iteration, loss):
        return {'iter': iteration, 'epoch': iteration / 2, 'loss': loss, 'loss_source': loss}

    first = [step(1, 5.0), step(2, 4.0), {'knn/top1': 40.0, 'step': 1}, step(3, 9.9)]
    second = [step(3, 3.0), step(4, 2.0), {'knn/top1': 60.0, 'step': 2}]
    second.append({'guard/neighbors_kept': 0.5, 'step': 2})  # of another hook
    write_scalars(tmp_path, '20260101_000000', first)
    path = write_scalars(tmp_path, '20260102_000000', second) / 'scalars.json'
    path.write_text(path.read_text() + '\n{"iter": 5, "epo')
    training, validation = read_scalars(tmp_path)
    assert [record['loss'] for record in training] == [5.0, 4.0, 3.0, 2.0]
    assert [record['knn/top1'] for record in validation] == [40.0, 60.0]
    assert validation[1]['guard/neighbors_kept'] == 0.5
    # A larger batch renumbers iterations: nothing was discarded.
    write_scalars(tmp_path, '20260102_120000', [{'iter': 3, 'epoch': 3, 'loss': 1.0}])
    training, validation = read_scalars(tmp_path)
    assert [record['loss'] for record in training] == [5.0, 4.0, 1.0, 2.0]
    assert [record['knn/top1'] for record in validation] == [40.0, 60.0]
    # Continued from epoch 1: what came after it is discarded, also beyond the new end.
    write_scalars(tmp_path, '20260103_000000', [step(3, 2.5)])
    training, validation = read_scalars(tmp_path)
    assert [record['loss'] for record in training] == [5.0, 4.0, 2.5]
    assert [record['knn/top1'] for record in validation] == [40.0]


def test_runs_are_compared_by_figures_and_config_values(tmp_path):
    for name, lr, top1, ended in (('one', 0.1, [50.0, 40.0], True), ('two', 0.2, [30.0], False)):
        records = [{'loss': 9.0, 'iter': 10, 'epoch': 1}]
        records += [{'knn/top1': value, 'step': epoch} for epoch, value in enumerate(top1, 1)]
        folder = write_scalars(tmp_path / name, '20260101_000000', records)
        about = dict(recipe='digits', values=flatten(dict(optimizer=dict(lr=lr), a=1), ()))
        about |= dict(max_epochs=2, max_iters=20) | (dict(ended='2026') if ended else {})
        (folder.parent / 'run.json').write_text(json.dumps(about))
    runs = [read_run(tmp_path / name) for name in ('one', 'two')]
    assert describe_progress(runs[1]) == 'iteration 10 of 20 (50 %), epoch 1 of 2'
    write_scalars(tmp_path / 'three', '20260101_000000', [{'loss': 9.0, 'iter': 10}])
    page = write_report([tmp_path / 'one', tmp_path / 'three'], tmp_path / 'report.html')
    assert 'x_axis_label: "epoch or iteration"' in page.read_text()
    found = compare(runs, ['one', 'two'])
    rows = [dict(zip(found['columns'], row, strict=True)) for row in found['rows']]
    assert [row['state'] for row in rows] == ['finished', 'not finished']
    assert [row['best knn/top1'] for row in rows] == ['50', '30']
    assert found['differences'] == [['optimizer.lr', '0.1', '0.2']]
    assert name_runs([Path('/a/run'), Path('/b/run')]) == ['a/run', 'b/run']
    assert name_runs([Path('/a/run')] * 2) == ['/a/run (1)', '/a/run (2)']


def test_thumbnails_of_images_of_any_depth_show_their_range(tmp_path):
    ramp = np.tile(np.linspace(100, 4000, 64), (64, 1))
    cv2.imwrite(str(tmp_path / '0.png'), ramp.astype(np.uint16))
    tifffile.imwrite(tmp_path / '1.tif', ramp.astype(np.float32) / 1e4)
    np.save(tmp_path / '2.npy', np.repeat(ramp[:, :, None], 5, 2).astype(np.int32))
    (tmp_path / '3.png').write_bytes(b'no image')
    names = ('0.png', '1.tif', '2.npy', '3.png')
    draw_contact_sheet([[(tmp_path / name, '') for name in names]], tmp_path / 'sheet.png')
    sheet = np.asarray(Image.open(tmp_path / 'sheet.png'))
    *ramps, grey = np.array_split(sheet[20:80, :, 0].astype(float), 4, axis=1)
    for cell in ramps:
        left, middle, right = (cell[:, place].mean() for place in (16, cell.shape[1] // 2, -18))
        assert left < 60 and 90 < middle < 165 and right > 195
    assert (grey[:, 20:-20] == 128).all()


def test_a_table_keeps_markup_and_long_lines():
    rows = [('[red]a[/red].png', 1), ('b' * 300, 2)]
    lines = format_table(('file', 'number'), rows).splitlines()
    assert [line.split() for line in lines] == [['file', 'number'], *([n, str(v)] for n, v in rows)]
    assert {len(line) for line in lines[1:]} == {lines[0].index('number') + 1}


def test_summary_has_a_column_for_each_set_of_queries():
    with pytest.raises(ValueError, match='num_images=1 must be at least 2'):
        RunReportHook(num_images=1)
    report = RunReportHook()
    assert report.summarise_metrics() == []
    before = {'knn/top1': 50.0, 'knn/top1_k10': 50.0, 'knn_changed/top1': 20.0}
    after = {'knn/top1': 96.0, 'knn_changed/top1': 80.0}
    pixels = {'pixels/top1': 98.0, 'pixels_changed/top1': 40.0}
    report.metrics = [(0, before | pixels), (1, {}), (70, after | pixels)]
    lines = [' '.join(line.split()) for line in report.summarise_metrics()[1:]]
    assert lines[:3] == [
        'as they are changed', 'untrained 50.00 % 20.00 %', 'after 70 epochs 96.00 % 80.00 %'
    ]  # fmt: skip
    assert lines[3].startswith('raw pixels 98.00 % 40.00 %')
