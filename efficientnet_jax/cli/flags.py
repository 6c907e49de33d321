"""The flags of the command line, but for the overrides of a config no second word about what they mean."""

from __future__ import annotations

import argparse
import difflib
from typing import NamedTuple, NoReturn

from efficientnet_jax.errors import UserError
from efficientnet_jax.runs.options import OPTIONS

OVERRIDE = '--config.'


class Command(NamedTuple):
    """What a command line says."""

    flags: argparse.Namespace
    overrides: dict[str, str]  # {option: text}, the last one wins
    images: list[str]  # files and folders for predict


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message[:1].upper()}{message[1:]}. All flags: --help.')


def parse(words: list[str], usage: str, modes: list[str]) -> Command:
    """The command of sys.argv[1:]. --help prints usage and exits. Raises UserError in one line for what cannot be."""
    rest, overrides = _overrides(words)
    images = rest[rest.index('--') + 1 :] if '--' in rest else []
    parser = _parser(usage, modes)
    flags, others = parser.parse_known_args(rest[: rest.index('--')] if '--' in rest else rest)
    for word in others:
        if word.startswith('-') and word != '-':
            _unknown(word, [name for action in parser._actions for name in action.option_strings])
    command = Command(flags, overrides, [*others, *images])
    _check(command)
    return command


def _parser(usage: str, modes: list[str]) -> _Parser:
    parser = _Parser('efficientnet-jax', '%(prog)s [flags] [images]', usage, allow_abbrev=False, add_help=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add('--help', '-h', '--helpfull', action='help', help='Show this and exit.')
    add('--config', metavar='FILE', help='For example configs/b7.py, or FILE:ARGUMENT; left out: the config of the run in --workdir.')
    add('--workdir', metavar='DIR', help='Folder for checkpoints, metrics and results.')
    add('--mode', choices=modes, default='train', help='What to do; train without it.')
    add('--coordinator', metavar='HOST:PORT', help='Of process 0. TPU VMs, GKE and Slurm need none of these four.')
    add('--processes', type=_positive, metavar='N', help='Processes in this run; 1: this one alone, whatever the machine says.')
    add('--process_id', type=int, metavar='I', help='Which of them this is, from 0.')
    add('--lost_after_seconds', type=_positive, default=30, metavar='N', help='All end when one has been silent for so long (30).')
    add('--json', action='store_true', help='predict: print JSON.')
    add('--picture', metavar='P.png', help='predict: also write this picture, each image with its top-5 beside it.')
    add('--features', action='store_true', help='predict: also write the pooled features of all images to --output.')
    add('--output', metavar='F.npz', help='predict --features: the file to write (features.npz).')
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} must be a whole number of at least 1')
    return int(text)


def _overrides(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Words without --config.OPTION=VALUE or --config.OPTION VALUE, and what these say. A bare option of True or False means True."""
    rest, overrides, remaining = [], {}, iter(words)
    for word in remaining:
        if word == '--':
            return [*rest, word, *remaining], overrides
        if not word.startswith(OVERRIDE):
            rest.append(word)
            continue
        name, equals, text = word.removeprefix(OVERRIDE).partition('=')
        if not equals:
            is_bool = name in OPTIONS and OPTIONS[name].kind is bool
            text = 'True' if is_bool else next(remaining, '')
            if not is_bool and not text:
                raise UserError(f'{word} needs a value: {word}=VALUE.')
        overrides[name] = text
    return rest, overrides


def _unknown(word: str, known: list[str]) -> NoReturn:
    name = word.split('=')[0]
    if name.lstrip('-') in OPTIONS:
        raise UserError(f'There is no flag {name}; options of the config are written {OVERRIDE}{name.lstrip("-")}=VALUE.')
    near = difflib.get_close_matches(name, known, n=1)
    raise UserError(f'There is no flag {name}.{f" Did you mean {near[0]}?" if near else ""} All flags: --help.')


def _check(command: Command) -> None:
    flags = command.flags
    mode = flags.mode
    if mode != 'predict':
        if command.images:
            words = ' '.join(command.images)
            raise UserError(f'mode={mode} takes flags alone, not {words!r}; image files are for --mode=predict.')
        for name in ('json', 'picture', 'features', 'output'):
            if getattr(flags, name):
                raise UserError(f'--{name} is for --mode=predict, not for mode={mode}; leave it out.')
        if flags.workdir is None:
            raise UserError(f'mode={mode} needs --workdir=DIR; only predict with --config.init_from goes without.')
    if flags.output is not None and not flags.features:
        raise UserError(f'--output={flags.output} is where --features go; give both, or neither.')
