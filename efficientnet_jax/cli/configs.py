"""The config of a command: of a file or of the run in the workdir, with the overrides of the command line."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import pathlib
import sys
from typing import Any

from ml_collections import ConfigDict

from efficientnet_jax.cli.hints import near
from efficientnet_jax.errors import UserError
from efficientnet_jax.runs import options, recipe, record

PACKAGE = pathlib.Path(__file__).parents[1]
FOLDER = next((path for path in (PACKAGE.parent / 'configs', PACKAGE / 'configs') if (path / 'default.py').is_file()), PACKAGE / 'configs')
TRUE, FALSE = ('true', 't', '1', 'yes'), ('false', 'f', '0', 'no')


def config_of(argument: str | None, workdir: str | None, overrides: dict[str, str]) -> ConfigDict:
    """The config of --config=argument, or without it of the run in workdir; overrides are {option: text} and win.

    Raises UserError, in one line, for a file, argument, option or value that cannot be, and StorageError for a damaged config of a run.
    """
    config = of_workdir(workdir) if argument is None else of_file(argument)
    if config is None:
        where = 'no --workdir is given' if workdir is None else f'workdir={workdir} holds no run'
        raise UserError(f'--config=FILE is missing, and {where} whose config could be taken. {_published()}')
    for name, text in overrides.items():
        override(config, name, text)
    options.check(config)
    return config


def of_file(argument: str) -> ConfigDict:
    """What get_config of PATH or PATH:ARGUMENT gives; a path is of the present folder, or of this project's own configs/."""
    text, colon, value = argument.partition(':')
    path = next((path for path in (pathlib.Path(text), FOLDER.parent / text) if path.is_file()), None)
    if path is None:
        meant = f' Did you mean --config=configs/{text}.py?' if (FOLDER / f'{text}.py').is_file() else ''
        raise UserError(f'--config={argument} is not a file.{meant} {_published()}')
    _make_importable()
    spec = importlib.util.spec_from_file_location(f'config_{path.stem}', path)
    if spec is None or spec.loader is None:
        raise UserError(f'--config={argument} is no Python file. {_published()}')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    get_config = getattr(module, 'get_config', None)
    if get_config is None:
        raise UserError(f'--config={argument} has no function get_config(); see configs/b0.py.')
    if colon and not inspect.signature(get_config).parameters:
        raise UserError(f'--config={argument}: {text} takes nothing after the colon; write --config={text}.')
    config = get_config(value) if colon else get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(f'--config={argument}: get_config() must return a ConfigDict, not {type(config).__name__}; see configs/b0.py.')
    return config


def of_workdir(workdir: str | None) -> ConfigDict | None:
    """The config of the run in workdir; options that it is older than have their defaults. None where there is no run."""
    of_run = None if workdir is None else record.config_of(workdir)
    if of_run is None:
        return None
    values = recipe.flatten(of_run)
    _make_importable()
    from configs import default

    config = default.get_config()
    unknown = [name for name in values if name not in options.OPTIONS]
    if unknown:
        raise UserError(
            f'The run in workdir={workdir} has options that this version does not know: {", ".join(unknown)}. Give --config=FILE.'
        )
    for name, value in values.items():
        assign(config, name, _tuples(value))
    return config


def override(config: ConfigDict, name: str, text: str) -> None:
    """Sets an option from the text of a flag. Raises UserError with near names, or with the rule that the value breaks."""
    if name not in options.OPTIONS:
        meant = near(name)
        group = [option for option in options.OPTIONS if option.startswith(f'{name}.')]
        hint = f' It is a group: {", ".join(group)}.' if group else f' Did you mean {" or ".join(meant)}?' if meant else ''
        raise UserError(f'--config.{name}={text}: there is no option {name!r}.{hint} All options: configs/default.py.')
    assign(config, name, value_of(name, text))


def assign(config: ConfigDict, name: str, value: Any) -> None:
    """Sets an option by its dotted name. Raises UserError for a value that it cannot have."""
    options.check_value(name, value)
    *groups, leaf = name.split('.')
    for group in groups:
        config = config[group]
    config[leaf] = float(value) if options.OPTIONS[name].kind is float and value is not None else value


def value_of(name: str, text: str) -> Any:
    """The value that text means for an option: 'None' is None where the option may be, and text that means nothing stays text."""
    option = options.OPTIONS[name]
    if text == 'None' and (option.optional or option.kind is not str):
        return None
    if option.kind is bool:
        return True if text.lower() in TRUE else False if text.lower() in FALSE else text
    if option.kind is tuple:
        return _tuple_of(text)
    if option.kind is str:
        return text
    try:
        return option.kind(text)
    except ValueError:
        return text


def _tuple_of(text: str) -> Any:
    """(1, 2) as Python writes it, or names with commas between them."""
    try:
        value = _tuples(ast.literal_eval(text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return tuple(part.strip() for part in text.split(','))
    return value if isinstance(value, tuple) else (value,)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list | tuple) else value


def _make_importable() -> None:
    """Configs import each other as `configs`, which is on the path of `python main.py` but not of an installed command."""
    if 'configs' not in sys.modules and importlib.util.find_spec('configs') is None:
        spec = importlib.util.spec_from_file_location('configs', FOLDER / '__init__.py', submodule_search_locations=[str(FOLDER)])
        sys.modules['configs'] = importlib.util.module_from_spec(spec)


def _published() -> str:
    names = sorted(path.stem for path in FOLDER.glob('*.py') if path.stem != '__init__')
    return f'Configs: configs/NAME.py with NAME of {", ".join(names)}.'
