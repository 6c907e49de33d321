"""Journals that an older reader destroyed, took for new ones or met with a bare error, minimised by hand; and a short run of benchmarks/fuzz.py.

The record is benchmarks/records/fuzz_journals_requests.md.
"""

import pathlib

import pytest

from benchmarks.fuzzing import harness
from efficientnet_jax.errors import UserError
from efficientnet_jax.queue import trials

CORPUS = {path.name: path.read_bytes() for path in sorted((pathlib.Path(__file__).parent / 'corpus').iterdir())}
REFUSED = {
    'deep_list': r'is damaged in line 2 \(RecursionError: ',
    'key_is_a_list': r"is damaged \(TypeError: unhashable type: 'list'\)",
    'last_line_cut': r'is damaged in line 3 \(JSONDecodeError: ',
    'no_first_line': 'is damaged: its first line does not make a study',
    'nul_bytes': r"is no journal of a study, or damaged in line 1: it begins with b'\\x00",
    'one_line_of_json': 'is no journal of a study, or damaged in line 1: it begins with b.{"accuracy": 0.7}',
    'one_line_of_text': 'is no journal of a study, or damaged in line 1: it begins with b.a thesis',
    'point_is_a_number': r"is damaged \(TypeError: 'int' object is not iterable\)",
    'settings_are_a_number': r'is damaged \(TypeError: ',
}
MENDED = {'last_line_without_its_end'}


def test_every_file_of_the_corpus_is_looked_at():
    assert CORPUS.keys() == REFUSED.keys() | MENDED


@pytest.mark.parametrize(('name', 'message'), REFUSED.items(), ids=list(REFUSED))
def test_a_damaged_journal_is_refused_by_name_and_loses_nothing(tmp_path, name, message):
    path = tmp_path / name
    path.write_bytes(CORPUS[name])
    with pytest.raises(UserError, match=f'^storage=journal:{path} {message}'):
        trials.open_study(f'journal:{path}', 'grid', {})
    assert path.read_bytes().startswith(CORPUS[name])


def test_a_last_line_without_its_end_is_kept(tmp_path):
    path = tmp_path / 'journal'
    path.write_bytes(CORPUS['last_line_without_its_end'])
    assert trials.open_study(f'journal:{path}', 'grid', {}).claim().key == 'a'
    assert path.read_bytes().startswith(CORPUS['last_line_without_its_end'] + b'\n')


@pytest.mark.slow
def test_damaged_journals_are_refused_by_name(tmp_path):
    cases = list(harness.cases('journals', str(tmp_path), seed=17, first=0, count=400))
    assert len(cases) == 400 and not [case for case in cases if case.outcome not in harness.GOOD]
    assert {case.group for case in cases} == {'empty study', 'no journal', 'study', 'study cut'}
    assert {case.outcome for case in cases} == set(harness.GOOD)
