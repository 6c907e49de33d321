"""report.html: what it shows, and that a browser shows it."""

import html.parser
import shutil
import subprocess

import numpy as np
import pytest

from efficientnet_jax.evaluation.evaluate import evaluate
from efficientnet_jax.reporting import page
from efficientnet_jax.runs import record, storage
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
    storage.write_json(str(tmp_path / 'config.json'), {'model': '<b>', 'dataset': 'folder:a&b', 'augment': {'crop': 'pad'}, 'width': 1.1})
    trained = result('train', eval=scores, eval_ema=scores) | {'seconds_to_first_step': {'imports': 2.0, 'compile': 3.5}}
    settings = storage.read_json(str(tmp_path / 'config.json'))
    page.leave(str(tmp_path), trained, settings)
    page.leave(str(tmp_path), result('evaluate', eval=scores | {'top1': 0.625}), settings)
    page.leave(str(tmp_path), result('search', action='status'), settings | {'search': {'strategy': 'ppo'}})
    storage.write_json(str(tmp_path / 'result.json'), result('study', kind='grid'))  # by a mode that keeps none of the others
    (tmp_path / 'study').mkdir()
    (tmp_path / 'study' / 'grid.csv').write_text('network,macs,top1\nb<0>,399398560,0.98765432\n' + 'x,1,\n' * 60)
    for name in ('curves.png', 'study/grid.png'):
        (tmp_path / name).write_bytes(b'picture')
    page.write(str(tmp_path))
    shown = (tmp_path / 'report.html').read_text()
    headings = Headings(shown)
    assert headings.found == ['<b>, folder:a&b', 'Results', 'Training', 'Scaling study', 'Config', 'Environment']
    assert headings.fetched == [] and shown.count('src="data:image/png;base64,cGljdHVyZQ=="') == 2
    for text in (
        '62.50%',
        '50.00%',
        '<td>1:01</td>',
        'First step after 5.5 s: imports 2.0 s, compile 3.5 s',
        '<td>augment.crop</td><td>pad</td>',
        'All knobs: train, evaluate',
        'All knobs: search',
        '<td>search.strategy</td><td>ppo</td>',
    ):
        assert text in shown
    for text in ('<td>b&lt;0&gt;</td><td>399398560</td><td>0.987654</td>', '11 more rows in'):
        assert text in shown


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
