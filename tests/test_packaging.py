"""The wheel holds the library, its core is jax, flax, optax and Pillow, and what pyproject.toml asks for is what requirements.txt installs."""

import ast
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

from tests.data.image_files import encode, photo

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
EXTRAS = PROJECT['optional-dependencies']
OF_THE_CORE = {'absl-py', 'etils', 'ml-dtypes', 'orbax-checkpoint', 'scipy'}  # jax and flax bring these, asked for by name or not


def lower_bounds(requirements):
    """{name: lowest version} of lines like 'jax[tpu]>=0.10.2,<0.12  # why'; '==' counts as the lowest too."""
    found = {}
    for line in requirements:
        name, version = re.match(r'([\w.-]+)(?:\[\w+\])?\s*(?:[>=]=([\d.]+))?', line).groups()
        found[plain(name)] = version
    return found


def plain(name):
    """The name of a distribution as the package index compares them."""
    return re.sub('[-_.]+', '-', name).lower()


def owners_of_modules():
    """{name that is imported: names of the distributions that have its files} of what is installed here."""
    return {module: {plain(owner) for owner in owners} for module, owners in importlib.metadata.packages_distributions().items()}


def installs(*extras):
    """What pip installs with these extras, theirs in turn included."""
    wanted = lower_bounds(PROJECT['dependencies'])
    for extra in extras:
        for line in EXTRAS[extra]:
            inner = re.fullmatch(r'efficientnet_jax\[([\w,]+)\]', line)
            wanted |= installs(*inner[1].split(',')) if inner else lower_bounds([line])
    return wanted


def test_requirements_are_the_core_and_all_extras():
    lines = [line for line in (ROOT / 'requirements.txt').read_text().splitlines() if line and not line.startswith('#')]
    assert lower_bounds(lines) == installs(*EXTRAS)


def imports(path):
    """Top-level names of all that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split('.')[0]


def test_extras_hold_every_import_of_library_and_main():
    """Packages are known by the name they are imported under: that of the distribution which has the files."""
    owners = owners_of_modules()
    own = {'efficientnet_jax', 'configs', *sys.stdlib_module_names}
    own.add('huggingface_hub')  # asked for by the error of who names weights there (README, fine-tune)
    given = set(installs('train', 'search')) | OF_THE_CORE
    paths = [ROOT / 'main.py', *(ROOT / 'configs').glob('*.py'), *(ROOT / 'efficientnet_jax').rglob('*.py')]
    for path in paths:
        for name in set(imports(path)) - own:
            assert owners.get(name, {name}) & given, f'{path} imports {name}, which no extra of pyproject.toml installs'


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing is left beside the sources."""
    folder = tmp_path_factory.mktemp('wheel')
    for name in ('pyproject.toml', 'README.md'):
        shutil.copy(ROOT / name, folder)
    for name in ('efficientnet_jax', 'configs'):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
    command = [sys.executable, '-m', 'pip', 'wheel', '.', '--quiet', '--no-deps', '--no-build-isolation', '--wheel-dir', 'dist']
    subprocess.run(command, cwd=folder, check=True)
    (built,) = (folder / 'dist').glob('*.whl')
    return built


def test_wheel_holds_the_whole_library_and_nothing_else(wheel):
    """A folder that is not in the wheel is missing in `packages` of pyproject.toml."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in name}
    files = {str(path.relative_to(ROOT)) for path in (ROOT / 'efficientnet_jax').rglob('*') if path.is_file()}
    files |= {f'efficientnet_jax/configs/{path.name}' for path in (ROOT / 'configs').glob('*.py')}
    assert names == {name for name in files if '__pycache__' not in name}
    assert {'efficientnet_jax/py.typed', 'efficientnet_jax/data/imagenet_classes.txt'} <= names


LIGHT = """
import importlib.abc, importlib.util, sys
REFUSED = {refused!r}

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in REFUSED:
            raise ModuleNotFoundError('refused: ' + name, name=name)

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in REFUSED else find_spec(name, *rest)  # what is not installed has none
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, {wheel!r})
import jax, jax.numpy as jnp
import efficientnet_jax, efficientnet_jax.models, efficientnet_jax.training.step, efficientnet_jax.training.optim
assert efficientnet_jax.__file__.startswith({wheel!r}), efficientnet_jax.__file__
module = efficientnet_jax.models.build('efficientnet_b0')
shapes = jax.eval_shape(lambda key, x: module.init(key, x, train=False), jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
from efficientnet_jax.data.preprocess import Preprocess
image = Preprocess(32)(open(sys.argv[1], 'rb').read(), 'photo.jpg')
print(sum(x.size for x in jax.tree.leaves(shapes['params'])), image.shape)
"""


def test_models_step_and_reading_an_image_need_the_core_only(wheel, tmp_path):
    extra = set(installs(*EXTRAS)) - set(installs()) - OF_THE_CORE
    refused = {name for name, distributions in owners_of_modules().items() if distributions & extra}
    assert {'tensorflow', 'tensorflow_datasets', 'ml_collections', 'sklearn', 'matplotlib', 'optuna'} <= refused
    script = LIGHT.format(refused=refused, wheel=str(wheel))
    (tmp_path / 'photo.jpg').write_bytes(encode(photo(), 'JPEG'))
    done = subprocess.run([sys.executable, '-c', script, 'photo.jpg'], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == '5288548 (32, 32, 3)', done.stderr  # parameters of B0, tests/test_counting.py


def test_an_installed_command_has_the_configs(wheel, tmp_path):
    """From a folder that is no clone, with the package of the wheel: what pip writes as the command `efficientnet-jax`."""
    (script,) = PROJECT['scripts'].items()
    assert script[0] == 'efficientnet-jax'
    module, function = script[1].split(':')
    site = tmp_path / 'site'
    zipfile.ZipFile(wheel).extractall(site)
    for words, ending in (
        (['--config=configs/transfer.py:folder,b0', '--config.lr=1'], "there is no option 'lr'. Did you mean lr_per_256?"),
        (['--config=b7'], 'Did you mean --config=configs/b7.py?'),
        ([], 'holds no run whose config could be taken. Configs: configs/NAME.py with NAME of b0, '),
    ):
        code = f'import sys; sys.path.insert(0, {str(site)!r}); from {module} import {function}; assert {str(site)!r} in sys.modules[{module!r}].__file__; {function}()'
        done = subprocess.run(
            [sys.executable, '-c', code, '--workdir=run', *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, 'PYTHONPATH': ''},
        )
        assert done.returncode == 1 and ending in done.stderr and done.stderr.count('\n') == 1, done.stderr
