"""The hook of a run, and its report in Chromium, in both themes, on a laptop and on a phone."""

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
from mmengine.runner import Runner

from mmpatchmix.cli import report, show
from mmpatchmix.files import lock_folder
from mmpatchmix.report import report as pages
from mmpatchmix.report.pictures import PICTURES
from mmpatchmix.report.run_record import read_scalars
from mmpatchmix.report.run_report_hook import RunReportHook
from tests.engine.tiny_run import tiny_run_config

NAMES = ('chromium', 'chromium-browser', 'google-chrome')
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
in_browser = pytest.mark.skipif(
    CHROMIUM is None, reason='no Chromium is installed (on Debian: apt-get install chromium)'
)
WARNING = dict(iter=7, epoch=2, name='collapse', hint='Lower the rate.')
WARNING['message'] = 'All features <are> alike.'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The Runner of a finished run of two epochs, and its losses."""
    folder = tmp_path_factory.mktemp('run') / 'first'
    cfg = tiny_run_config(folder, epochs=2, num_images=16, report=True)
    cfg.default_hooks.report.pictures = True
    runner = Runner.from_cfg(cfg)
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, RunReportHook))
    hook.described = {'data': '16 <images>'}
    runner.train()
    return runner, [record['loss'] for record in read_scalars(folder)[0]]


@pytest.fixture(scope='module')
def work_dir(trained):
    """The work dir of the run, with a warning and figures of its health."""
    folder = Path(trained[0].work_dir)
    assert (folder / 'report.html').is_file()
    (data,) = folder.glob('*/vis_data')
    (data / 'health.jsonl').write_text(json.dumps(WARNING) + '\n{"cut')
    with open(data / 'scalars.json', 'a', encoding='utf-8') as file:
        file.write('{"iter": 3, "loss": NaN, "epoch": 2}\n')
        for step in (1, 2, 3):
            file.write(json.dumps({'health/rank_me': 2.5 * step, 'step': step}) + '\n')
    return folder


def test_the_hook_does_not_change_the_run(trained, tmp_path):
    runner, losses = trained
    cfg = tiny_run_config(tmp_path, epochs=2, num_images=16)
    Runner.from_cfg(cfg).train()
    assert losses == [record['loss'] for record in read_scalars(tmp_path)[0]]
    assert len(losses) == 4
    report = next(hook for hook in runner.hooks if isinstance(hook, RunReportHook))
    assert [epoch for epoch, _ in report.metrics] == [0, 2]  # untrained and trained
    summary = '\n'.join(report.summary(runner))
    assert 'untrained' in summary
    assert f'after 2 epochs  {report.metrics[-1][1]["knn/top1"]:.2f} %' in summary
    for name in ('mixed.png', 'report.html', 'epoch_2.pth'):
        assert str(Path(runner.work_dir) / name) in summary


def test_errors_of_figures_and_files_become_warnings(trained, monkeypatch):
    def fail(*args):
        raise OSError('no space left on device')

    runner, _ = trained
    report = next(hook for hook in runner.hooks if isinstance(hook, RunReportHook))
    monkeypatch.setattr('matplotlib.figure.Figure.savefig', fail)
    monkeypatch.setattr('mmpatchmix.report.report.write_text', fail)
    report.before_train(runner)
    report.after_train(runner)
    log = next(Path(runner.work_dir).glob('*/*.log')).read_text()
    for name in ('mixed.png', 'report.html'):
        assert f'{name} was not written: OSError: no space left on device' in log


@pytest.fixture(scope='module')
def second(work_dir):
    """A copy of the run with another learning rate and without an end."""
    folder = work_dir.parent / 'second'
    shutil.copytree(work_dir, folder)
    (data,) = folder.glob('*/vis_data')
    (data / 'health.jsonl').unlink()
    (path,) = folder.glob('*/run.json')
    about = json.loads(path.read_text())
    del about['ended']
    about['values']['optim_wrapper.optimizer.lr'] = '0.125'
    path.write_text(json.dumps(about))
    return folder


def log_of(work_dir):
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope='module')
def browser():
    playwright = pytest.importorskip('playwright.sync_api')
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Open a file; its page must request nothing and log no errors."""
    contexts, complaints, requests = [], [], []

    def open_file(path, width=1280, height=900, **settings):
        context = browser.new_context(viewport=dict(width=width, height=height), **settings)
        contexts.append(context)
        page = context.new_page()
        page.on('console', lambda m: complaints.append((m.type, m.text)))
        page.on('pageerror', lambda error: complaints.append(('error', str(error))))
        page.on('request', lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector('html[data-ready]', timeout=60_000)
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert {url for url in requests if not url.startswith('data:')} <= {requests[0]}
    assert [c for c in complaints if c[0] in ('error', 'warning')] == []


PLOTS = 'Bokeh.documents.flatMap(doc => doc.roots())'
CURVES = f"""() => {PLOTS}.flatMap(plot => plot.renderers.map(part => ({{
  name: part.name, kind: part.glyph.type, x: [...part.data_source.data.x],
  y: [...part.data_source.data.y].map(y => Number.isNaN(y) ? null : y)}})))"""
# Contrast of two colours as WCAG defines it.
CONTRAST = """([text, back]) => {
  const light = colour => {
    const context = document.createElement('canvas').getContext('2d');
    context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [low, high] = [light(text), light(back)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}"""


@in_browser
def test_a_run_on_a_laptop(open_page, work_dir, tmp_path):
    path = pages.write_report([work_dir], tmp_path / 'one.html')
    assert path.stat().st_size < 5e6
    page = open_page(path, color_scheme='light')
    log = log_of(work_dir)
    curves = {(c['name'], c['kind']): c for c in page.evaluate(CURVES)}
    training = {r['iter']: r for r in log if 'loss' in r}
    for name in ('loss', 'loss_mix_mix', 'acc_source', 'kl', 'lr', 'momentum', 'time'):
        points = {step: r[name] for step, r in training.items() if name in r}
        curve = curves[name, 'Line']
        assert curve['y'] == [None if v != v else v for v in points.values()], name
        assert curve['x'] == pytest.approx([step / 2 for step in points])
    points = [(r['step'], r['knn/top1']) for r in log if 'knn/top1' in r]
    assert len(points) == 2  # before training, and at the end
    assert list(zip(*(curves['knn/top1', 'Line'][k] for k in 'xy'), strict=True)) == points
    assert curves['health/rank_me', 'Line']['y'] == [2.5, 5.0, 7.5]
    # Keys switch curves off, the span zooms all plots, by the keyboard alone.
    box = page.get_by_role('checkbox', name='loss_mix_mix')
    box.focus()
    page.keyboard.press('Space')
    hidden = f'{PLOTS}.flatMap(plot => plot.renderers).filter(r => !r.visible).map(r => r.name)'
    assert page.evaluate(hidden) == ['loss_mix_mix']
    page.get_by_label('Show').select_option('its last half')
    spans = f'{PLOTS}.map(plot => [plot.x_range.start, plot.x_range.end])'
    assert {tuple(span) for span in page.evaluate(spans)} == {(1.0, 2.0)}
    text = page.locator('body').inner_text()
    assert 'finished' in text and re.search(r'Written .*, \d+ (second|minute)s? ago', text)
    assert 'All features <are> alike.' in text and 'Lower the rate.' in text
    assert '16 <images>' in text and 'patchmix_vit-digits' in text
    changed = page.get_by_role('table', name='Differences from the shipped recipe').locator('tr')
    rows = [row.all_inner_texts() for row in (r.locator('th,td') for r in changed.all())]
    assert ['train_dataloader.batch_size', '128', '8'] in rows
    assert not any('work_dir' in row[0] or 'experiment_name' in row[0] for row in rows)


@in_browser
def test_pictures_and_tables_have_names(open_page, work_dir):
    page = open_page(work_dir / 'report.html')
    loaded = 'images => images.map(i => [i.alt, i.naturalWidth])'
    pictures = page.locator('img').evaluate_all(loaded)
    for name in ('mixed', 'neighbours', 'attention', 'similar', 'map', 'similarity_matrix'):
        assert any(alt.startswith(pages.CAPTIONS[name]) and width > 200 for alt, width in pictures)
    assert sum(alt.startswith(pages.CAPTIONS['neighbours']) for alt, _ in pictures) == 2
    for place in page.locator('[role=img]').all():
        assert page.locator(f'#{place.get_attribute("aria-labelledby")}').inner_text()
    assert page.locator('table').count() == page.locator('table > caption').count() > 5
    levels = page.locator('h1,h2,h3').evaluate_all('all => all.map(h => Number(h.tagName[1]))')
    assert levels[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    page.keyboard.press('Tab')
    assert page.evaluate('document.activeElement.textContent') == 'Skip to the curves'


@in_browser
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_both_themes_can_be_read_on_a_phone(open_page, work_dir, scheme):
    settings = dict(color_scheme=scheme, has_touch=True, is_mobile=True)
    page = open_page(work_dir / 'report.html', 390, 844, **settings)
    assert page.evaluate('document.documentElement.scrollWidth') == 390

    def contrasts():
        looks = page.evaluate("""() => {
          const style = q => getComputedStyle(document.querySelector(q));
          const card = style('.card').backgroundColor;
          return [[style('body').color, style('body').backgroundColor], [style('a').color, card],
            [style('figcaption').color, card],
            [Bokeh.documents[0].roots()[0].below[0].major_label_text_color, card]];
        }""")
        return [page.evaluate(CONTRAST, look) for look in looks], looks[0]

    found, before = contrasts()
    assert min(found) > 4.5
    page.get_by_role('button', name='Dark').click()
    found, after = contrasts()
    assert (min(found) > 4.5 and before == after[::-1]) or before != after
    pressed = page.get_by_role('button', name='Dark').get_attribute('aria-pressed')
    assert pressed == ('true' if scheme == 'light' else 'false')
    # Dragging scrolls the page instead of zooming a plot.
    assert page.evaluate('Bokeh.documents[0].roots()[0].toolbar.active_drag') is None


@in_browser
def test_two_runs_are_compared(open_page, work_dir, second, tmp_path, capsys):
    report.main([str(work_dir), str(second), '--out', str(tmp_path / 'two.html')])
    assert str(tmp_path / 'two.html') in capsys.readouterr().out
    assert (tmp_path / 'two.html').stat().st_size < 5e6
    page = open_page(tmp_path / 'two.html')
    table = page.get_by_role('table', name='The runs').first
    names = lambda: table.locator('tbody th').all_inner_texts()  # noqa: E731
    assert names() == ['first', 'second']
    head = table.get_by_role('button', name='warnings')
    head.focus()
    page.keyboard.press('Enter')
    page.keyboard.press('Enter')
    assert names() == ['second', 'first']
    sorted_by = table.locator('th[aria-sort=ascending]').all_inner_texts()
    assert len(sorted_by) == 1 and sorted_by[0].startswith('warnings')
    differences = page.get_by_role('table', name='Differences of their configs').locator('tr')
    assert differences.nth(1).locator('th,td').nth(2).inner_text() == '0.125'
    labels = {c['name'] for c in page.evaluate(CURVES)}
    assert {'first: loss', 'second: loss', 'first', 'second'} <= labels
    assert 'not finished' in page.locator('header').inner_text()


def test_pictures_are_in_tensorboard_and_beyond_the_budget_left_out_of_the_page(work_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = work_dir.glob('*/vis_data')
    events = EventAccumulator(str(folder)).Reload()
    assert [image.step for image in events.Images('neighbours')] == [0, 2]
    assert set(PICTURES) <= set(events.Tags()['images'])
    run = pages.read_run(work_dir)
    pictures, left_out = pages.embed_pictures(run, 20_000)
    assert len(pictures) > 0 and len(left_out) > 0
    assert len(pictures) + len(left_out) == sum(min(2, len(s)) for s in run.pictures.values())
    assert all(Path(path).is_file() for path in left_out)


def test_reports_of_a_run_without_records_of_no_run_and_without_bokeh(
    work_dir, tmp_path, monkeypatch
):
    (path,) = work_dir.glob('*/run.json')
    about = json.loads(path.read_text())
    del about['ended']
    begun, page = tmp_path / 'begun', tmp_path / 'a.html'
    (begun / 'now').mkdir(parents=True)
    (begun / 'now' / 'run.json').write_text(json.dumps(about))
    assert 'in progress' not in pages.write_report([begun], page).read_text()
    lock_folder(begun)
    text = pages.write_report([begun], page).read_text()
    assert 'in progress' in text and 'This page does not refresh itself' in text
    assert 'nothing has been logged yet' in text and 'Nothing has been evaluated' in text
    with pytest.raises(FileNotFoundError, match='holds no run'):
        pages.write_report([tmp_path], page)
    monkeypatch.setattr(pages, 'find_spec', lambda name: None)
    text = pages.write_report([work_dir], page).read_text()
    assert 'pip install bokeh' in text and 'role="img"' not in text
    last = [r for r in log_of(work_dir) if 'kl' in r][-1]['kl']
    assert f'<td>{last:.6g}</td>' in text


def test_show_draws_from_config_and_checkpoints_of_a_run(work_dir, tmp_path, capsys):
    config, out = str(work_dir / 'patchmix_vit-digits.py'), tmp_path / 'out' / 'similar.png'
    checkpoints = [str(work_dir / f'epoch_{epoch}.pth') for epoch in (1, 2)]
    place = ['--work-dir', str(tmp_path / 'show')]
    show.main(['similar', config, *checkpoints, '--out', str(out), *place])
    assert out.stat().st_size > 10_000 and str(out) in capsys.readouterr().out
    for name in ('mix', 'views'):
        show.main([name, config, '--out', str(tmp_path / f'{name}.png'), *place])
        assert (tmp_path / f'{name}.png').stat().st_size > 10_000
    for arguments, message in (
        (['mix', config, *checkpoints], 'show mix takes 0 to 0 checkpoints, not 2'),
        (['mix', config, '--out', 'mix.pdf'], 'must end in .png'),
    ):
        with pytest.raises(SystemExit, match=message):
            show.main(arguments)
