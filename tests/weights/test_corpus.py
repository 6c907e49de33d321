"""Files that once ended with a bare Python error or filled the memory, as benchmarks/fuzz.py found and a loop of deletions minimised them.

h5_long_text broke the reader of its day, all others the one before it.
"""

import pathlib
import re
import resource

import pytest

from efficientnet_jax.errors import UserError
from efficientnet_jax.weights import files

CORPUS = sorted((pathlib.Path(__file__).parent / 'corpus').iterdir())


def most_memory():
    """Bytes that the process has held at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize('path', CORPUS, ids=lambda path: path.name)
def test_each_is_refused_by_name_in_little_memory(path):
    before = most_memory()
    with pytest.raises(UserError, match=rf'^{re.escape(str(path))}\b.+') as caught:
        files.read(str(path))
    assert str(caught.value).isprintable()
    assert most_memory() - before < 256 << 20
