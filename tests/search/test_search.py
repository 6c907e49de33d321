"""The mode as a whole: what it leaves, halving, duplicates, bad input with the study intact; trained for real and killed in the slow tests."""

import collections
import csv
import importlib.util
import json
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
import types

import PIL.Image
import pytest

from configs import search as configs
from efficientnet_jax import counting
from efficientnet_jax.errors import NotFinite, UserError
from efficientnet_jax.evaluation.network import architecture_of
from efficientnet_jax.queue import trials
from efficientnet_jax.runs import hosts, options, storage
from efficientnet_jax.search import finalists, holdout, proxy, rank_correlation, settings
from efficientnet_jax.search import search as search_room
from efficientnet_jax.search import space as spaces
from efficientnet_jax.search.search import search
from efficientnet_jax.search.space import Space, candidate_hash
from efficientnet_jax.search.strategies import Random
from efficientnet_jax.search.trial_queue import Slots, key_of
from tests import tiny

pytestmark = pytest.mark.filterwarnings('ignore::ResourceWarning', 'ignore::DeprecationWarning')
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
COUNT = 10


def small(kind='evolution', evaluation='oracle', data_dir=None):
    """Candidates of the whole space with a narrow stem and head, scored by the oracle: no images, no training."""
    config = configs.get_config(f'{kind},digits')
    for knob in ('model', 'resolution', 'batch_size', 'steps'):
        config[knob] = tiny.get_config()[knob]
    config.data_dir = data_dir
    config.search.update(evaluation=evaluation, trials=COUNT, population=4, sample=2, ppo_batch=5, ppo_hidden=8, target=2e5)
    return config


def lines(workdir):
    return storage.read_jsonl(str(workdir / 'search' / 'trials.jsonl'))


def load(path):
    spec = importlib.util.spec_from_file_location('winner', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize(
    'strategy', ['evolution', *(pytest.param(name, marks=pytest.mark.slow) for name in ('random', 'ppo', 'tpe', 'nsga2'))]
)
def test_a_search_leaves_its_files(strategy, tmp_path, capsys):
    config = small(strategy)
    result = search(config, str(tmp_path))
    arms = ['random'] if strategy == 'random' else [strategy, 'random']
    slots = collections.Counter((line['arm'], line['slot']) for line in lines(tmp_path))
    assert slots == collections.Counter((arm, slot) for arm in arms for slot in range(COUNT))
    assert capsys.readouterr().err.count('best: ') == len(slots)
    assert all(result['metrics']['arms'][arm]['slots'] == COUNT for arm in arms)
    winner = max(lines(tmp_path), key=lambda line: line['reward'])
    assert result['metrics']['winner']['hash'] == winner['hash']
    with open(tmp_path / 'search' / 'front.csv') as file:
        front = list(csv.DictReader(file))
    costs, accuracies = ([float(row[name]) for row in front] for name in ('cost', 'accuracy'))
    assert costs == sorted(costs) and accuracies == sorted(accuracies) and len(front) == result['metrics']['front']
    assert [row['hash'] for row in json.loads((tmp_path / 'search' / 'front.json').read_text())] == [row['hash'] for row in front]
    with PIL.Image.open(tmp_path / 'search' / 'search.png') as picture:
        assert picture.width > 600
    assert '<svg' in (tmp_path / 'search' / 'search.svg').read_text()
    assert json.loads((tmp_path / 'result.json').read_text()) == result

    config.search.action = 'status'
    again = search(config, str(tmp_path))
    assert {k: v for k, v in again['metrics'].items() if k != 'action'} == {k: v for k, v in result['metrics'].items() if k != 'action'}
    assert json.loads((tmp_path / 'result.json').read_text()) == result  # it only looks
    assert f'random: {COUNT} complete, 0 running, 0 waiting, 0 failed of {COUNT}' in capsys.readouterr().out


def test_status_makes_no_search(tmp_path):
    config = small()
    config.search.action = 'status'
    with pytest.raises(UserError, match=r'trials.journal is not there, so no search was started'):
        search(config, str(tmp_path / 'mistyped'))
    assert not (tmp_path / 'mistyped').exists()


def test_finalists_of_a_search_that_trained_none(tmp_path):
    with pytest.raises(UserError, match=r'search.action=finalists has no candidate'):
        finalists.finalists(small(), str(tmp_path), None, [])


def test_commands_of_the_winner_hold_together_in_a_shell(tmp_path):
    config = small()
    config.search.update(strategy='random', trials=1)
    search(config, str(tmp_path / 'se tr'))
    card = (tmp_path / 'se tr' / 'search' / 'winner.py').read_text()
    (command, _) = [shlex.split(line) for line in card.splitlines() if 'python main.py' in line]
    assert command[2] == f'--config={tmp_path}/se tr/search/winner.py'
    assert 'space efficientnet: random, 1 slot, seed 0' in ' '.join(card.split())


def test_the_winner_is_an_ordinary_config(tmp_path):
    result = search(small(), str(tmp_path))['metrics']['winner']
    assert 'made up by the oracle' in ' '.join((tmp_path / 'search' / 'winner.py').read_text().split())  # and no image was seen
    config = load(tmp_path / 'search' / 'winner.py')
    macs = counting.count(architecture_of(config), num_classes=1000)[1]
    assert macs == result['cost'] and config.train_split == 'train' and config.eval_split == 'test'
    from efficientnet_jax.study import study

    config.study.kind, config.study.target, config.study.methods = 'plan', f'macs:{2 * macs}', ('width',)
    rows = study(config, str(tmp_path / 'scaled')) and json.loads((tmp_path / 'scaled' / 'study' / 'plan.json').read_text())['rows']
    assert rows[0]['macs'] == macs and rows[1]['macs'] == pytest.approx(2 * macs, rel=0.2)


def test_random_beginnings_are_evaluated_once(tmp_path):
    search(small(), str(tmp_path))
    by_arm = collections.defaultdict(dict)
    for line in lines(tmp_path):
        by_arm[line['arm']][line['slot']] = line
    for slot in range(4):  # the population
        one, two = by_arm['evolution'][slot], by_arm['random'][slot]
        assert one['candidate'] == two['candidate'] and one['reward'] == two['reward']
        assert {one['reused'], two['reused']} == {None, key_of('evolution' if two['reused'] else 'random', slot)}


def test_estimated_cycles_are_a_cost(tmp_path, monkeypatch):
    """Of a table that process 0 fills before the first candidate; the table itself is in test_cycles."""
    filled = []

    class Table:
        def __init__(self, space, config, folder):
            self.space = space

        def __call__(self, candidate):
            return 7.0 * counting.count(self.space.decode(candidate))[1]

        def fill(self):
            filled.append(self)

    monkeypatch.setattr(settings.cycles, 'cycle_cost', Table)
    config = small()
    config.search.update(cost='cycles', target=10.0)
    with pytest.raises(ValueError, match=r'search.target=10 can be met by no candidate .* \(cycles\)'):
        search(config, str(tmp_path))
    assert filled and not (tmp_path / 'search' / 'trials.journal').exists()
    config.search.target = 1e6
    search(config, str(tmp_path))
    space = settings.setting(config, '').space
    assert all(line['cost'] == 7 * counting.count(space.decode(line['candidate']))[1] for line in lines(tmp_path))
    config.study.chip = 'v6e:1x1'
    with pytest.raises(ValueError, match=r"search.chip='v5e:1x1' there, 'v6e:1x1' here"):
        search(config, str(tmp_path))


@pytest.fixture
def queue(tmp_path):
    return trials.open_study(f'journal:{tmp_path}/t', 'x', {})


def slots_of(queue, count=6, arms=1):
    found = settings.setting(small(), '')
    named = {name: Random(found.space, None, 0) for name in ('a', 'b')[:arms]}
    return Slots(queue, found.space, named, count, found.cost)


def test_a_network_that_runs_elsewhere_is_not_taken(queue):
    slots = slots_of(queue, arms=2)  # both arms propose the same
    keys = [slots.claim().key for _ in range(3)]
    assert keys == ['a_00000', 'a_00001', 'a_00002']
    one, other = slots_of(queue, arms=2), queue.points()['a_00000']['point']
    queue.add({'b_00000': other | {'arm': 'b'}})  # of a worker that looked before the first was queued
    late = one.claim()
    assert late.key == 'b_00000' and one.twin('b_00000') == {'result': None, 'wait': True}
    queue._fail(queue._by_key()['a_00000'][0]._trial_id, 'expired')  # its worker died: who waited goes on
    assert one.twin('b_00000') == {'result': None, 'wait': False}


def test_a_failed_candidate_counts_and_may_be_tried_again(queue):
    slots = slots_of(queue)
    slots.claim().fail('ValueError: too wide')
    record = slots.records()[0]
    assert (record['reward'], record['accuracy'], record['failed'], record['reused']) == (0.0, 0.0, 'ValueError: too wide', None)
    assert record['cost'] > 0 and candidate_hash(record['candidate']) == record['hash']
    assert slots.claim().key == 'a_00001'
    queue.retry()
    slots.claim().complete(0.7, result={'accuracy': 0.7, 'cost': 1.0})
    assert slots.records()[0]['reward'] == 0.7


def test_rungs_keep_the_best_of_an_arm(queue):
    slots = slots_of(queue)
    verdicts = []
    for reward in (0.5, 0.4, 0.6, 0.45):
        claim = slots.claim()
        verdicts.append(slots.go_on(0, reward, 2))
        assert slots.rungs() == [reward]
        claim.complete(reward, result={'accuracy': reward, 'rungs': slots.rungs()})
    assert verdicts == [True, False, True, False]


@pytest.fixture
def trainer(monkeypatch):
    """Stands for train: evaluates as the config's schedule says, each time with an accuracy that the candidate's filters decide."""
    asked = []

    def train(config, folder, evaluate):
        asked.append((folder, config))
        os.makedirs(os.path.join(folder, 'checkpoints'))
        every, total = round(config.eval_every_epochs * 1200 / config.batch_size), config.steps
        setup = types.SimpleNamespace(horizon=types.SimpleNamespace(total_steps=total))
        score = evaluate(setup, None, config)
        for step in [*range(every, total, every), total]:
            good = sum(row[4] for row in config.stages) % 97 / 97
            scores = score(types.SimpleNamespace(step=step, good=good * step / total))
        if good > 0.92:
            raise NotFinite('loss=nan at step 3')
        return {'metrics': scores}

    monkeypatch.setattr(proxy, 'train', train)
    monkeypatch.setattr(proxy, 'state_scorer', lambda *_: lambda state, _: {'eval': {'top1': state.good}})
    return asked


def test_halving_stops_the_worse_and_marks_them(tmp_path, data_dir, trainer):
    config = small('random', 'train', data_dir)
    config.search.update(rungs=2, steps=40, trials=24)
    result = search(config, str(tmp_path))
    found = lines(tmp_path)
    stopped = collections.Counter(line['stopped_at'] for line in found)
    assert set(stopped) == {None, 10, 20} and stopped[None] < 12
    assert all(line['accuracy'] <= line['stopped_at'] / 40 for line in found if line['stopped_at'])
    assert max(found, key=lambda line: line['reward'])['stopped_at'] is None
    broken = [line for line in found if line['failed']]
    assert broken and all(line['failed'].startswith('loss=nan') and line['reward'] == 0 for line in broken)
    assert result['metrics']['arms']['random']['stopped'] == stopped[10] + stopped[20]
    folder, one = trainer[0]
    assert (one.train_split, one.eval_split, one.steps) == ('train[:-300]', 'train[-300:]', 40)
    assert os.path.basename(folder) == found[0]['hash'] and not os.path.exists(f'{folder}/checkpoints')

    # What is in a candidate's folder is not trained again; under another budget it is refused.
    count = len(trainer)
    config.search.name = 'another'
    search(config, str(tmp_path))
    assert len(trainer) == count
    config.search.update(name='third', steps=44, trials=2)
    search(config, str(tmp_path))
    assert all('under another config; choose another --workdir' in line['failed'] for line in lines(tmp_path))


def test_finalists_and_proxy_check(tmp_path, data_dir, trainer, capsys):
    config = small('evolution', 'train', data_dir)
    config.search.update(finalists=3, checked=4, seeds=2)
    with pytest.raises(ValueError, match='finalists needs a finished search: 0 of its slots'):
        config.search.action = 'finalists'
        search(config, str(tmp_path))
    config.search.action = 'run'
    search(config, str(tmp_path))
    config.search.action, before = 'finalists', len(trainer)
    metrics = search(config, str(tmp_path))['metrics']
    folders = [folder for folder, _ in trainer[before:]]
    assert len(folders) == 6 and all('/full/' in folder for folder in folders)
    assert all(one.eval_split == 'train[-300:]' and one.steps == 24 for _, one in trainer[before:])  # its own budget, not the proxy's
    assert sorted({one.seed for _, one in trainer[before:]}) == [0, 1]
    assert metrics['rank']['n'] == 3 and metrics['winner']['seeds'] == 2
    card = ' '.join((tmp_path / 'search' / 'winner.py').read_text().split())
    assert 'trained in full' in card and '% on train[-300:] of digits' in card
    assert 'Proxy against training in full' in capsys.readouterr().out

    config.search.action, before = 'proxy_check', len(trainer)
    metrics = search(config, str(tmp_path))['metrics']
    assert len(trainer) - before == 4 * (3 + 2)
    assert metrics['rank'] == pytest.approx({'correlation': 1.0, 'p': 1 / 12, 'n': 4}) and metrics['deviation_between_seeds'] == 0
    assert len((tmp_path / 'search' / 'proxy_check.csv').read_text().splitlines()) == 5


def test_finalists_have_the_cycles_of_the_whole_network(tmp_path, data_dir, trainer, monkeypatch):
    found = settings.setting(small(evaluation='train', data_dir=data_dir), str(tmp_path))
    monkeypatch.setattr(
        finalists.aot, 'estimated_cycles', lambda config, chip, batch, net, train: types.SimpleNamespace(cycles=counting.count(net)[1])
    )
    config = small(evaluation='train', data_dir=data_dir)
    config.search.update(cost='cycles', target=1e6)
    candidates = [found.space.sample(random.Random(seed)) for seed in range(3)]
    best = [{'hash': candidate_hash(c), 'arm': 'random', 'cost': 1e6, 'accuracy': 0.5, 'candidate': c} for c in candidates]
    finalists.finalists(config, str(tmp_path), found._replace(cost=lambda candidate: 1e6), best)
    rows = json.loads((tmp_path / 'search' / 'finalists.json').read_text())['rows']
    assert [row['whole_cost'] for row in rows] == [counting.count(found.space.decode(c))[1] for c in candidates]
    assert [row['reward'] for row in rows] == [found.objective(row['accuracy'], row['whole_cost']) for row in rows]
    card = ' '.join((tmp_path / 'search' / 'winner.py').read_text().split())
    assert f'cycles {max(rows, key=lambda row: row["reward"])["whole_cost"]:.6g}, accuracy' in card  # the cost that its reward is of


def test_rank_correlation():
    assert rank_correlation.spearman([1, 2, 3, 4, 5], [2, 4, 6, 8, 99]).correlation == pytest.approx(1)
    assert rank_correlation.spearman(range(12), [-x for x in range(12)]).correlation == pytest.approx(-1)
    assert rank_correlation.spearman([1, 2], [1, 2]) == rank_correlation.Rank(None, None, 2)
    assert rank_correlation.spearman([1, 1, 1], [1, 2, 3]).correlation is None


@pytest.mark.parametrize(
    ('knobs', 'message'),
    [
        (
            {'target': 10.0},
            r'search.target=10 can be met by no candidate of space efficientnet: the cheapest has .* \(macs\). Raise search.target',
        ),
        ({'action': 'go'}, r"search.action='go' must be one of run, status, finalists, proxy_check"),
        ({'strategy': 'luck'}, r"search.strategy='luck' must be one of random, evolution"),
        ({'space': 'all'}, r"search.space='all' must be one of mnasnet_paper, efficientnet"),
        ({'ops': ('fused',)}, r"search.ops=\('fused',\) must name some of conv, separable, mbconv"),
        ({'evaluation': 'guess'}, r"search.evaluation='guess' must be one of train, supernet, oracle"),
        ({'trials': 0}, r'search.trials=0 must be at least 1'),
        ({'cost': 'step_seconds', 'evaluation': 'oracle'}, r"search.cost='step_seconds' needs search.evaluation='train'"),
        ({'rungs': 7}, r'search.rungs=7 of factor 2 need 128 steps or more; the proxy has 60'),
        ({'steps': 0}, r'search.steps=0 must be at least 1'),
        ({'eval_split': 'test'}, r"search.eval_split='test' must be a part of train that is held out"),
        ({'eval_split': 'train[-400:]'}, r"search.eval_split='train\[-400:\]' shares 100 images with search.train_split='train\[:-300\]'"),
        ({'storage': 'ftp://x'}, r"storage='ftp://x' must be journal:PATH"),
    ],
)
def test_bad_input(knobs, message, tmp_path, data_dir):
    config = small(evaluation='train', data_dir=data_dir)
    config.search.update(knobs)
    with pytest.raises(ValueError, match=message):
        search(config, str(tmp_path))
    assert not (tmp_path / 'search').exists()


def test_an_unknown_kind():
    with pytest.raises(
        ValueError, match='must be KIND or KIND,RECIPE with KIND of random, evolution, ppo, tpe, nsga2, supernet and RECIPE of'
    ):
        configs.get_config('bayes,digits')


def test_the_hold_out_must_not_be_what_is_evaluated_in_the_end(data_dir):
    config = small(evaluation='train', data_dir=data_dir)
    config.eval_split = 'train[-200:]'
    with pytest.raises(ValueError, match=r"shares 200 images with eval_split='train\[-200:\]'"):
        holdout.check(config)


def test_a_worker_with_another_space_or_a_damaged_journal_leaves_the_study_as_it_is(tmp_path):
    search(small(), str(tmp_path))
    journal = tmp_path / 'search' / 'trials.journal'
    before, results = journal.read_bytes(), lines(tmp_path)
    other = small()
    other.search.ops = ('mbconv',)
    with pytest.raises(
        ValueError, match=r"study 'search' in .* has other settings: .*space.version='[0-9a-f]{8}' there, '[0-9a-f]{8}' here"
    ):
        search(other, str(tmp_path))
    assert journal.read_bytes().startswith(before) and lines(tmp_path) == results
    before = journal.read_bytes()
    broken = before.replace(b'op_code', b'op_c#de', 3)
    journal.write_bytes(broken)
    with pytest.raises(ValueError, match=r'trials.journal is no journal of a study, or damaged in line 1: .*put back a copy'):
        search(small(), str(tmp_path))
    assert journal.read_bytes() == broken
    journal.write_bytes(before)
    search(small(), str(tmp_path))
    assert lines(tmp_path) == results


WORKER = """
import sys, time
from efficientnet_jax.runs import hosts
from efficientnet_jax.search import search as run
from tests.search import test_search

config = test_search.chaotic(sys.argv[2])
scorer = run.scorer

def slow(*arguments):
    score = scorer(*arguments)
    def wait(*candidate):
        time.sleep(0.05)
        return score(*candidate)
    return wait

run.scorer = slow
try:
    run.search(config, sys.argv[1])
except Exception as error:
    hosts.leave(error)
"""


def chaotic(strategy):
    config = small(strategy)
    config.search.update(trials=40, lease_seconds=2.0, population=10, ppo_batch=8)
    return config


@pytest.mark.slow
@pytest.mark.parametrize('strategy', ['evolution', 'ppo'])
def test_kill_9_ten_times_loses_and_repeats_nothing(strategy, tmp_path):
    """Three workers, each of which also is the controller: whoever finds the queue empty proposes. A killed one is started again."""
    environment = os.environ | {'PYTHONPATH': ROOT, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}

    def start():
        with open(tmp_path / 'log', 'a') as log:
            return subprocess.Popen(
                [sys.executable, '-c', WORKER, str(tmp_path), strategy], env=environment, cwd=ROOT, stdout=log, stderr=log
            )

    def done():
        path = tmp_path / 'search' / 'trials.jsonl'
        return len(path.read_text().splitlines()) if path.exists() else 0

    rng, workers, killed, end = random.Random(0), [start() for _ in range(3)], [], time.monotonic() + 500
    while len(killed) < 10 and time.monotonic() < end:
        aim = 6 * (len(killed) + 1)  # spread over the 80 slots
        while done() < aim and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        place = rng.randrange(3)
        workers[place].send_signal(signal.SIGKILL)
        workers[place].wait()
        killed.append(done())
        workers[place] = start()
    assert [worker.wait(max(1, end - time.monotonic())) for worker in workers] == [0, 0, 0], (tmp_path / 'log').read_text()[-3000:]
    assert len(killed) == 10 and killed[-1] < 80
    config = chaotic(strategy)
    queue = settings.open_queue(config, str(tmp_path), settings.setting(config, ''))
    slots = search_room.slots_of(config, settings.setting(config, ''), queue)
    expected = [key_of(arm, slot) for slot in range(40) for arm in sorted((strategy, 'random'))]
    assert [key_of(one['arm'], one['slot']) for one in slots.records()] == expected and slots.finished()
    complete = collections.Counter(trial.user_attrs['key'] for trial in queue.study.trials if trial.state.name == 'COMPLETE')
    assert complete == collections.Counter(expected) and queue.failures() == {}
    assert [one['hash'] for one in lines(tmp_path)] == [one['hash'] for one in slots.records()]
    oracle = search_room.scorer(config, str(tmp_path), settings.setting(config, ''))
    assert all(one['accuracy'] == oracle(one['candidate'], '', None, 0)['accuracy'] for one in slots.records())


@pytest.mark.slow
def test_process_0_of_a_worker_asks_and_tells_the_others(tmp_path):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    flags = ['--config=configs/search.py:evolution,digits', '--mode=search', f'--workdir={tmp_path}', '--processes=2']
    flags += ['--config.search.evaluation=oracle', '--config.search.trials=6', f'--coordinator=127.0.0.1:{port}']
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
    both = [
        subprocess.Popen(
            [sys.executable, 'main.py', *flags, f'--process_id={i}'], env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert len(lines(tmp_path)) == 12 and ['12/12' in error for error in errors] == [True, False]


@pytest.fixture
def two_stages(monkeypatch, data_dir):
    """kind, evaluation -> config of a search among networks of two stages, which compile in seconds."""
    net = tiny.ARCHITECTURES['tiny']
    made = Space('two', net, base=net, ops=('mbconv',), expands=(1, 2), filters=(0.5, 1.0), repeats=(0, 1), skips=('identity',))
    monkeypatch.setitem(spaces.SPACES, 'two', made)
    monkeypatch.setitem(options.OPTIONS, 'search.space', options.choice('two'))

    def config(kind, evaluation):
        config = small(kind, evaluation, data_dir)
        config.width = config.depth = 1.0
        config.search.update(space='two', ops=('mbconv',), target=1e6)
        return config

    return config


@pytest.mark.slow
def test_a_search_on_digits_goes_on_after_a_stop(tmp_path, two_stages, monkeypatch, capsys):
    config = two_stages('random', 'train')
    config.search.update(trials=2, steps=4, compile_ahead=True, cost='step_seconds', target=1.0)
    train = proxy.train

    def stopped(one, folder, evaluate):
        train(one, folder, evaluate=evaluate)
        raise hosts.Stopped('asked')

    monkeypatch.setattr(proxy, 'train', stopped)
    with pytest.raises(hosts.Stopped):
        search(config, str(tmp_path))
    monkeypatch.setattr(proxy, 'train', train)
    search(config, str(tmp_path))
    assert 'Finished already' in capsys.readouterr().err  # the first candidate, from its checkpoint
    assert len(lines(tmp_path)) == 2 and all(0 < line['cost'] < 100 and not line['failed'] for line in lines(tmp_path))


@pytest.mark.slow
def test_a_supernet_is_searched(tmp_path, two_stages):
    config = two_stages('supernet', 'supernet')
    config.supernet.steps, config.search.trials = 2, 4
    result = search(config, str(tmp_path))
    assert result['metrics']['arms']['evolution']['slots'] == 4 and len(lines(tmp_path)) == 8
    assert all(line['seconds'] is not None and line['accuracy'] >= 0 for line in lines(tmp_path))
    assert os.listdir(tmp_path / 'search' / 'supernet' / 'checkpoints') and not (tmp_path / 'search' / 'candidates').exists()


@pytest.mark.slow
def test_what_is_compiled_ahead_is_what_is_trained(tmp_path, two_stages):
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    config = two_stages('random', 'train')
    config.search.steps = 2
    space = settings.setting(config, '').space
    candidate = space.sample(random.Random(0))

    def programs():
        return {name for name in os.listdir(tmp_path / 'cache') if name.startswith('jit_train_step') and name.endswith('cache')}

    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'cache'))
        compilation_cache.reset_cache()
        ahead = proxy.Ahead(config, space)
        ahead.start(candidate)
        ahead.wait()
        compiled = programs()
        proxy.evaluate(config, space, candidate, str(tmp_path / 'run'))
        assert len(compiled) == 1 and programs() == compiled
    finally:
        jax.config.update('jax_compilation_cache_dir', before)
        compilation_cache.reset_cache()
