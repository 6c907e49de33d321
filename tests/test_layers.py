"""The rooms of the package stand in one order, and a room imports only what stands before it."""

import ast
import pathlib
import statistics

SURFACE = ('errors', 'architectures', 'scaling', 'counting')  # at the top of the package; the standard library alone
ROOMS = (
    *SURFACE, 'models', 'data', 'runs', 'reporting', 'weights', 'evaluation', 'training', 'tpu', 'export', 'queue', 'study', 'search', 'cli',
)  # fmt: skip
APART = {('data', 'models')}  # in order, and yet neither imports the other
PACKAGE = pathlib.Path(__file__).parents[1] / 'efficientnet_jax'
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
    """(room, file) of all files but the package's own two."""
    for path in sorted(PACKAGE.rglob('*.py')):
        room = path.relative_to(PACKAGE).with_suffix('').parts[0]
        if room not in ('__init__', '__main__'):
            yield room, path


def test_a_room_imports_rooms_before_it_only():
    for room, path in files():
        assert room in ROOMS, f'{path}: give {room} its place in ROOMS'
        for name in imports(path):
            parts = name.split('.')
            if parts[0] == 'efficientnet_jax' and len(parts) > 1 and parts[1] != room and parts[1] != '__version__':
                before = ROOMS.index(parts[1]) < ROOMS.index(room)
                assert before and (room, parts[1]) not in APART, f'{path} must not import {name}'


def test_the_top_holds_the_surface_alone():
    top = {path.stem for path in PACKAGE.glob('*.py')} | {path.name for path in PACKAGE.iterdir() if (path / '__init__.py').exists()}
    assert top - {'__init__', '__main__'} <= set(ROOMS)
    assert {path.stem for path in PACKAGE.glob('*.py')} - {'__init__', '__main__'} <= set(SURFACE)


def test_the_surface_needs_the_standard_library_only():
    for room, path in files():
        if room in SURFACE:
            assert not {'jax', 'flax', 'numpy', 'optax'} & {name.split('.')[0] for name in imports(path)}, path


def test_heavy_libraries_are_imported_inside_functions():
    for _, path in files():
        if path.name == 'digits.py':  # a TFDS builder is a subclass; sources.py imports the module inside a function
            continue
        assert not HEAVY & {name.split('.')[0] for name in imports(path, top_level=True)}, path


def lengths():
    """(lines, file) of every file of the package and main.py, and (lines, function) of every function in them."""
    files, functions = [], []
    for path in [*PACKAGE.rglob('*.py'), PACKAGE.parent / 'main.py']:
        text = path.read_text()
        files.append((text.count('\n'), str(path)))
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        functions += [(node.end_lineno - node.lineno + 1, f'{path}: {node.name}') for node in nodes]
    return files, functions


def test_a_file_is_read_in_one_sitting():
    files, functions = lengths()
    assert max(files)[0] <= 300 and max(functions)[0] <= 60, (max(files), max(functions))
    assert statistics.median(lines for lines, _ in files) < 120
    assert (PACKAGE.parent / 'main.py').read_text().count('\n') < 60
