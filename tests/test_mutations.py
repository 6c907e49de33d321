"""The tests notice faults of wiring: every fault still applies, and a sample is caught (tests/mutations.py has all; the record is mutations.md)."""

import pytest

from tests.mutations import FAULTS, ROOT, noticed_by


@pytest.mark.parametrize('fault', FAULTS, ids=lambda fault: fault.name)
def test_the_fault_changes_the_code_as_it_is(fault):
    assert (ROOT / 'efficientnet_jax' / fault.file).read_text().count(fault.text) >= 1
    assert fault.text != fault.fault and all((ROOT / 'tests' / name).exists() for name in fault.tests)


def test_there_are_enough_faults():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 25


@pytest.mark.slow
@pytest.mark.parametrize('fault', FAULTS[::8], ids=lambda fault: fault.name)
def test_a_fault_is_noticed(fault):
    assert noticed_by(fault) is not None
