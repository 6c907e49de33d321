"""Passwords of the databases of studies and searches stand in no file of a workdir and in no message."""

import json

import pytest

from efficientnet_jax.errors import UserError
from efficientnet_jax.reporting import page
from efficientnet_jax.runs import record, secrets, workdir
from tests.runs.test_record import CONFIG, DATA, NETWORK, result

STORAGES = {
    'study': {'kind': 'grid', 'storage': 'postgresql://me:p@ss/w0rd@host/db', 'seeds': 1},
    'search': {'storage': 'postgresql://host/db?user=u&password=w0rd&sslmode=require', 'name': 'search'},
}


@pytest.mark.parametrize(
    ('storage', 'public'),
    [
        ('postgresql://u:p@ss@host/db', 'postgresql://u:***@host/db'),
        ('postgresql://u:a/b?c@host/db', 'postgresql://u:***@host/db'),
        ('postgresql://host/db?user=u&password=secret', 'postgresql://host/db?user=***&password=***'),
        ('--config.search.storage=mysql://u:p@host/db', '--config.search.storage=mysql://u:***@host/db'),
        ('postgresql://u@host/db', 'postgresql://u@host/db'),
        ('sqlite:////tmp/a.db', 'sqlite:////tmp/a.db'),
        ('gs://bucket/a:b@c', 'gs://bucket/a:b@c'),
        ('journal:/tmp/a?b=c', 'journal:/tmp/a?b=c'),
    ],
)
def test_what_may_be_shown_of_a_storage(storage, public):
    assert secrets.public(storage) == public == secrets.public(public)
    assert secrets.is_hidden(public) == (public != storage)


def test_a_drivers_text_loses_what_is_hidden():
    assert secrets.without('postgresql://u:p%40ss@h/d?password=hidden', 'no p@ss, p%40ss or hidden') == 'no ***, *** or ***'


def test_no_file_of_a_workdir_holds_a_password(tmp_path, monkeypatch):
    config = CONFIG | STORAGES
    monkeypatch.setattr('sys.argv', ['main.py', *(f'--config.{name}.storage={group["storage"]}' for name, group in STORAGES.items())])
    with workdir.claim(str(tmp_path), config, DATA) as claim:
        claim.describe(NETWORK)
        claim.start(0)
        page.leave(str(tmp_path), claim.finish(result('train', eval={'top1': 0.5, 'top5': 0.75, 'count': 8})), config)
    page.leave(str(tmp_path), result('search'), config)
    texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert {'run.json', 'config.json', 'report.html', 'result.json', 'model.json'} <= texts.keys()
    assert not [name for name, text in texts.items() if 'w0rd' in text or 'p@ss' in text]
    there = json.loads(texts['run.json'])
    for kept in (json.loads(texts['config.json']), there['config'], there['configs']['train'], there['configs']['search']):
        assert kept['study'] == STORAGES['study'] | {'storage': 'postgresql://me:***@host/db'}
        assert kept['search'] == STORAGES['search'] | {'storage': 'postgresql://host/db?user=***&password=***&sslmode=***'}
        assert {name: kept[name] for name in CONFIG} == CONFIG
    assert config == CONFIG | STORAGES  # what the process goes on with


def test_a_password_that_an_older_version_wrote_goes_with_the_next_result(tmp_path):
    with record.changing(str(tmp_path)) as found:
        found['config'] = CONFIG
    there = json.loads((tmp_path / 'run.json').read_text())
    (tmp_path / 'run.json').write_text(json.dumps(there | {'config': CONFIG | STORAGES, 'configs': {'study': CONFIG | STORAGES}}))
    record.leave(str(tmp_path), result('evaluate'), CONFIG, lambda _: None)
    assert 'w0rd' not in (tmp_path / 'run.json').read_text()


def test_a_run_is_resumed_with_another_password_and_not_with_another_recipe(tmp_path):
    with workdir.claim(str(tmp_path), CONFIG | STORAGES, DATA):
        pass
    for storage in ('postgresql://me:other@host/db', 'journal:/tmp/x', None):
        with workdir.claim(str(tmp_path), CONFIG | STORAGES | {'search': {'storage': storage}}, DATA):
            pass
    with pytest.raises(UserError, match='holds a run with another config: seed=0 there, 1 here'):
        workdir.claim(str(tmp_path), CONFIG | STORAGES | {'seed': 1}, DATA)
