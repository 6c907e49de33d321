"""report.html: what it shows, and that a browser shows it."""

import html
import html.parser
import shutil
import subprocess

import numpy as np
import pytest

from efficientnet_jax.evaluation.evaluate import evaluate
from efficientnet_jax.reporting import page
from efficientnet_jax.runs import record, storage, workdir
from efficientnet_jax.training.loop import train
from tests import tiny

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')


class Headings(html.parser.HTMLParser):
    """The text of the h1 and h2 of a page, and what it would fetch."""

    def __init__(self, page):
        super().__init__()
        self.found, self.fetched, self._open = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self._open = tag in ('h1', 'h2')
        self.fetched += [value for name, value in attributes if name in ('src', 'href') and not value.startswith('data:')]
        self.fetched += [tag] if tag in ('script', 'link', 'iframe') else []

    def handle_data(self, data):
        if self._open:
            self.found.append(data)
            self._open = False


def result(mode, **metrics):
    return record.result(mode, {'model': 'm'}, 7, metrics, 8, 61.0)


def test_an_empty_workdir_has_a_page(tmp_path):
    page.write(str(tmp_path))
    assert Headings((tmp_path / 'report.html').read_text()).found == [tmp_path.name]


def test_every_mode_that_ran_is_on_it_and_nothing_is_fetched_or_run(tmp_path):
    scores = {'loss': 1.0, 'top1': 0.5, 'top5': 0.75, 'count': 8}
    settings = {'model': '<b>', 'dataset': 'folder:a&b', 'augment': {'crop': 'pad'}, 'width': 1.1}
    workdir.hold(str(tmp_path), settings).close()
    trained = result('train', eval=scores, eval_ema=scores) | {'seconds_to_first_step': {'imports': 2.0, 'compile': 3.5}}
    page.leave(str(tmp_path), trained, settings)
    page.leave(str(tmp_path), result('evaluate', eval=scores | {'top1': 0.625}), settings)
    page.leave(str(tmp_path), result('search', action='status'), settings | {'search': {'strategy': 'ppo'}})
    page.leave(str(tmp_path), result('study', kind='grid'), settings | {'study': {'kind': 'grid'}})
    (tmp_path / 'study').mkdir()
    (tmp_path / 'study' / 'grid.csv').write_text('network,macs,top1\nb<0>,399398560,0.98765432\n' + 'x,1,\n' * 60)
    for name in ('curves.png', 'study/grid.png'):
        (tmp_path / name).write_bytes(b'picture')
    page.write(str(tmp_path))
    shown = (tmp_path / 'report.html').read_text()
    headings = Headings(shown)
    assert headings.found == [
        '<b> (width 1.1), folder:a&b',
        'Results',
        'Training',
        'Scaling study',
        'Architecture search',
        'Config',
        'Environment',
    ]
    assert headings.fetched == [] and shown.count('src="data:image/png;base64,cGljdHVyZQ=="') == 2
    for text in (
        '62.50%',
        '50.00%',
        '<td>1:01</td>',
        'First step after 5.5 s: imports 2.0 s, compile 3.5 s',
        '<td>augment.crop</td><td>pad</td>',
        'All options: train, evaluate',
        'All options: search',
        '<td>search.strategy</td><td>ppo</td>',
    ):
        assert text in shown
    for text in ('<td>b&lt;0&gt;</td><td>399398560</td><td>0.987654</td>', '11 more rows in'):
        assert text in shown


def damaged_workdir(path):
    """A workdir of a run whose files are all damaged but the record."""
    settings = {'model': 'm', 'dataset': 'd'}
    workdir.hold(str(path), settings).close()
    for name, content in (
        ('confused.json', '{"pairs": 7}'),
        ('plan.json', ''),
        ('curves.png', None),
        ('metrics.jsonl', 'x\n{"step": 7}\n'),
    ):
        (path / name).mkdir() if content is None else (path / name).write_text(content)
    (path / 'study').mkdir()
    (path / 'study' / 'grid.csv').write_bytes(b'\xff\n')
    return settings


def test_a_damaged_file_is_named_and_all_else_is_shown(tmp_path):
    page.leave(str(tmp_path), result('train', eval={'loss': 1.0, 'top1': 0.5, 'top5': 0.75, 'count': 8}), damaged_workdir(tmp_path))
    shown = (tmp_path / 'report.html').read_text()
    assert Headings(shown).found == ['m, d', 'Results', 'Config', 'Environment'] and '50.00%' in shown
    for text in (
        f'{tmp_path}/confused.json cannot be shown (TypeError',
        f'{tmp_path}/plan.json is cut off or damaged',
        'curves.png',
        f'{tmp_path}/metrics.jsonl line 1 is damaged',
        f'{tmp_path}/study/grid.csv cannot be shown (UnicodeDecodeError',
    ):
        assert text in html.unescape(shown), text


def test_a_damaged_record_is_named(tmp_path):
    settings = {'model': 'm', 'dataset': 'd'}
    workdir.hold(str(tmp_path), settings).close()
    (tmp_path / 'run.json').write_text('{')
    page.write(str(tmp_path))
    assert f'{tmp_path}/run.json is cut off or damaged' in (tmp_path / 'report.html').read_text()
    page.leave(str(tmp_path), result('evaluate'), settings)
    assert 'run.json was damaged once and was rebuilt' in (tmp_path / 'report.html').read_text()


def test_time_and_images_of_all_starts_and_the_command(tmp_path):
    settings = {'model': 'm', 'dataset': 'd', 'depth': 0.2, 'width': 0.25, 'search': {'storage': 'postgresql://me:p4ss@host/db'}}
    for start, stop in ((0, 5), (5, 24)):
        with workdir.hold(str(tmp_path), settings) as hold:
            hold.start(start)
            hold.progress(stop, 32 * (stop - start))
    with record.changing(str(tmp_path)) as found:
        for start, seconds in zip(found['starts'], (60.0, 1.0), strict=True):
            start['seconds'] = seconds
    page.leave(str(tmp_path), result('train'), settings)
    shown = (tmp_path / 'report.html').read_text()
    assert 'm (depth 0.2, width 0.25), d' in shown
    assert 'Training: 1:01 and 768 images in 2 starts.' in shown and 'pytest' in shown and 'p4ss' not in shown


@pytest.mark.parametrize(
    'mode, group, heading',
    [
        ('study', {'kind': 'table7'}, 'Scaling study: table7'),
        ('search', {'space': 'mnas', 'strategy': 'ppo'}, 'Architecture search: mnas, ppo'),
    ],
)
def test_a_study_and_a_search_are_headed_by_what_they_are(tmp_path, mode, group, heading):
    settings = {'model': 'efficientnet_b0', 'dataset': 'imagenet2012', mode: group | {'evaluation': 'oracle'}}
    page.leave(str(tmp_path), result(mode, winner={'hash': 'abc', 'reward': 0.75}), settings)
    shown = (tmp_path / 'report.html').read_text()
    assert Headings(shown).found[0] == heading
    assert '<td>winner.reward</td><td>0.75</td>' in shown
    assert ('made up by the oracle' in shown) == (mode == 'search')


def test_a_plan_has_results_and_its_cycles_by_stage(tmp_path):
    places = {'stem': {'forward': 75.0, 'backward': 25.0}, 'head': {'forward': 100.0}}
    row = {
        'topology': 'v5e:2x2',
        'batch_size': 32,
        'device': 'chip',
        'bytes': {'peak': 2**30, 'available': 2**34},
        'cycles_per_image': 200.0,
    }
    storage.write_json(
        str(tmp_path / 'plan.json'), row | {'bound': {'by': 'memory'}, 'remat_policy': None, 'advice': 'a', 'places': places}
    )
    page.leave(str(tmp_path), result('plan'), {'model': 'm', 'dataset': 'd'})
    shown = (tmp_path / 'report.html').read_text()
    assert Headings(shown).found == ['m, d', 'Results', 'Plan', 'Config', 'Environment']
    assert '<td>stem</td><td>75</td><td>25</td><td>50.0%</td>' in shown


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::ResourceWarning', 'ignore::DeprecationWarning')
@pytest.mark.skipif(CHROMIUM is None, reason='needs chromium: apt-get install chromium')
def test_a_browser_shows_it(tmp_path, data_dir):
    import PIL.Image

    config = tiny.get_config()
    config.data_dir, config.steps = data_dir, 8
    train(config, str(tmp_path))
    evaluate(config, str(tmp_path))
    # Its profile is a new folder: another browser of this user may run.
    browser = [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}/profile', '--window-size=1100,4000']
    page, picture = (tmp_path / 'report.html').as_uri(), tmp_path / 'page.png'
    dom = subprocess.run([*browser, '--dump-dom', page], capture_output=True, text=True, check=True, timeout=120).stdout
    expected = ['tiny, digits', 'Results', 'Training', 'Confusion matrix', 'Sample predictions', 'First batch', 'Config', 'Environment']
    assert Headings(dom).found == expected
    subprocess.run([*browser, '--hide-scrollbars', f'--screenshot={picture}', page], check=True, timeout=120, stderr=subprocess.DEVNULL)
    shown = np.asarray(PIL.Image.open(picture).convert('L'), np.float32)
    dark = (shown < 128).mean(axis=1)  # of each row of pixels
    assert shown.shape == (4000, 1100) and 0.02 < dark.mean() < 0.6
    # Pictures are there too, not only text: rows of the samples and of the first batch are dark for the most part.
    assert (dark > 0.5).sum() > 300
