"""Every command that a page, a config's card, a record or the notebook gives: parsed as main.py parses it, against the config that it names,
or checked for a script that exists and has the options."""

import json
import os
import pathlib
import re
import shlex
import string
import types

import jax
import pytest

from configs import digits
from efficientnet_jax.cli import command, configs, flags
from efficientnet_jax.runs import options

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ['README.md', 'CONTRIBUTING.md', 'launch/README.md']
SOURCES = [
    *PAGES,
    'launch/colab.ipynb',
    *(str(path.relative_to(ROOT)) for folder in ('configs', 'benchmarks', 'examples') for path in sorted((ROOT / folder).rglob('*.py'))),
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / 'benchmarks' / 'records').glob('*.md'))),
]
# What a reader puts in place of a word in capitals, and of dots.
PLACES = {'CONFIG': 'configs/digits.py', 'DIR': 'runs/x', 'N': '2', 'I': '0', '...': 'configs/digits.py'}
TPU_VM = {'create', 'setup', 'run', 'keep', 'logs', 'status', 'ssh', 'stop', 'delete'}


def text_of(name):
    text = (ROOT / name).read_text()
    if name.endswith('.ipynb'):
        cells = [''.join(cell['source']) for cell in json.loads(text)['cells'] if cell['cell_type'] == 'code']
        environ = {}  # as the first cell leaves it
        exec(cells[0].replace('import os', ''), {'os': types.SimpleNamespace(environ=environ)})
        text = '\n'.join('    ' + string.Template(line).safe_substitute(environ) for cell in cells[1:] for line in cell.splitlines())
    return re.sub(r'\\\n\s*', ' ', text)


def commands(name):
    """Word lists of the commands of a file: indented lines, and code within a line."""
    text = text_of(name)
    lines = re.findall(r'^ {4,}(\S.*)$', text, re.MULTILINE) + re.findall(r'`([^`\n]+)`', text)
    for line in lines:
        if re.match(r'(\w+=\S* )*(srun )?(python (\S+\.py|-[cm])|efficientnet-jax\b|(\./)?launch/\w+\.sh)', line):
            yield words_of(line)


def words_of(line):
    words = shlex.split(re.sub(r'\[|\.\.\.\]|\]', ' ', line), comments=True)
    while '=' in words[0] or words[0] == 'srun':
        words.pop(0)
    operators = [i for i, word in enumerate(words) if word in ('&&', '|', '>', '&', ';')]
    return [placed(word) for word in words[: operators[0] if operators else None]]


def placed(word):
    flag, equals, value = word.rpartition('=')
    return flag + equals + PLACES.get(value, value)


def for_main(words):
    """The words that reach main.py, or None."""
    script = words[0].removeprefix('./')
    if words[:2] == ['python', 'main.py']:
        return words[1:]
    if words[:3] == ['python', '-m', 'efficientnet_jax']:
        return words[2:]
    if words[0] == 'efficientnet-jax':
        return words
    rest = words[1:]
    if script == 'launch/local_cluster.sh':
        assert rest[0].isdigit(), words
        rest = rest[1:]
    elif script == 'launch/tpu_vm.sh':
        if not rest:
            return None
        assert rest[0] in TPU_VM, words
        rest = rest[1:] if rest[0] in ('run', 'keep') else []
    elif script not in ('launch/local.sh', 'launch/until_done.sh'):
        return None
    return ['main.py', *rest] if rest else None


ALL = [(name, words) for name in SOURCES for words in commands(name)]


def test_commands_are_found_where_they_are():
    found = {name: sum(source == name for source, _ in ALL) for name in SOURCES}
    assert found['README.md'] >= 10 and found['launch/README.md'] >= 8 and found['launch/colab.ipynb'] >= 6, found
    assert all(found[name] for name in SOURCES if name.startswith('configs/') and name not in ('configs/__init__.py', 'configs/default.py'))


@pytest.mark.parametrize('line', sorted({tuple(line) for _, words in ALL if (line := for_main(words))}), ids=' '.join)
def test_the_command_line_takes_them(line, monkeypatch):
    """Flags that are there, a config that is there, options with values that may be; the config of a run is a matter of its workdir."""
    monkeypatch.chdir(ROOT)
    said = flags.parse(list(line[1:]), '', list(command.MODES))
    config = digits.get_config() if said.flags.config is None else configs.of_file(said.flags.config)
    for name, text in said.overrides.items():
        configs.override(config, name, text)
    options.check(config)


@pytest.mark.parametrize('name', SOURCES)
def test_scripts_exist_and_have_the_options(name):
    for words in commands(name):
        script = words[1] if words[0] == 'python' else words[0]
        if script == '-c':
            compile(words[2], name, 'exec')
        elif script not in ('-m', 'efficientnet-jax'):
            assert (ROOT / script).is_file(), (name, words)
            assert words[0] == 'python' or os.access(ROOT / script, os.X_OK), (name, words)
            if words[0] == 'python' and script != 'main.py':
                source = (ROOT / script).read_text()
                own = words[2 : words.index('--') if '--' in words else None]  # the rest goes to main.py
                for option in (word.split('=')[0] for word in own if word.startswith('--')):
                    defined = f"'{option}'" in source or f"'{option[2:].split('.')[0]}'" in source
                    assert defined, f'{name}: {script} has no {option}'


def test_the_library_example_runs():
    """The README's Python block, traced without computing; its comments tell the truth."""
    (block,) = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
    names = {}

    def run():
        exec(block, names)
        return names['logits']

    assert jax.eval_shape(run).shape == (2, 10)
    counted = re.search(r'counting.count\(b3\)  # \((\d+), (\d+)\)', block)
    assert names['counting'].count(names['b3']) == tuple(map(int, counted.groups()))


def test_links_of_pages_lead_somewhere():
    for name in PAGES:
        for target in re.findall(r'\]\(([^)#]+)\)', (ROOT / name).read_text()):
            assert target.startswith('http') or (ROOT / name).parent.joinpath(target).exists(), f'{name}: {target}'
