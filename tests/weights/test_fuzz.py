"""A short run of benchmarks/fuzz.py over weight files; its record is benchmarks/records/fuzz_weights.md."""

import pytest

from benchmarks.fuzzing import harness


@pytest.mark.slow
def test_damaged_weight_files_are_refused_by_name(tmp_path):
    cases = list(harness.cases('weights', str(tmp_path), seed=17, first=0, count=500))
    assert len(cases) == 500 and not [case for case in cases if case.outcome not in harness.GOOD]
    assert {case.group for case in cases} == {'h5', 'keras', 'npz', 'pth', 'safetensors', 'tensorflow'}
    assert {case.outcome for case in cases} == set(harness.GOOD)
