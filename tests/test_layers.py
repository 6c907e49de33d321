"""Imports go one way: a module may import modules of lower layers only (see README, layout)."""

import ast
import pathlib

LAYERS = {
    0: ('architectures', 'counting', 'scaling', 'quiet'),
    1: ('models', 'data', 'jaxpr_count'),
    2: (
        'allocator',
        'hosts',
        'mesh',
        'losses',
        'optim',
        'state',
        'step',
        'checkpoint',
        'report',
        'plots',
        'progress',
        'report_page',
        'mistakes',
        'experiment',
        'augment_device',
        'hlo_cost',
        'aot',
    ),
    3: ('weights', 'train', 'evaluate', 'predict', 'export', 'export_tflite', 'plan', 'search', 'storages', 'claims', 'trials', 'study'),
}
LAYER = {module: layer for layer, modules in LAYERS.items() for module in modules}
PACKAGE = pathlib.Path(__file__).parents[1] / 'efficientnet_jax'
STANDARD_LIBRARY_ONLY = LAYERS[0]
HEAVY = {'tensorflow', 'tensorflow_datasets', 'torch', 'keras', 'matplotlib', 'optuna', 'libtpu', 'sklearn'}


def imports(path, top_level=False):
    """Names imported by a file: everywhere, or only when the file itself is imported."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def files():
    for path in sorted(PACKAGE.rglob('*.py')):
        module = path.relative_to(PACKAGE).with_suffix('').parts[0]
        if module != '__init__':
            yield module, path


def test_every_module_has_a_layer_and_imports_lower_ones_only():
    for module, path in files():
        assert module in LAYER, f'{path}: give {module} a layer'
        for name in imports(path):
            parts = name.split('.')
            if parts[0] == 'efficientnet_jax' and len(parts) > 1 and parts[1] != module:
                lower = LAYER[parts[1]] <= LAYER[module]
                assert lower and {module, parts[1]} != {'models', 'data'}, f'{path} must not import {name}'


def test_layer_0_needs_the_standard_library_only():
    for module, path in files():
        if module in STANDARD_LIBRARY_ONLY:
            assert not {'jax', 'flax', 'numpy', 'optax'} & {name.split('.')[0] for name in imports(path)}, path


def test_heavy_libraries_are_imported_inside_functions():
    for _, path in files():
        if path.name == 'digits.py':  # a TFDS builder is a subclass; sources.py imports the module inside a function
            continue
        assert not HEAVY & {name.split('.')[0] for name in imports(path, top_level=True)}, path
