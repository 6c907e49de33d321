"""Trains, evaluates and studies EfficientNets: python main.py --config=configs/b7.py --workdir=DIR [--mode=MODE] [--config.KNOB=VALUE ...]

  --mode=train      trains, or goes on: checkpoints/, metrics.jsonl, log.txt, curves.png, result.json, report.html
  --mode=evaluate   a whole split: result.json, log.txt, confusion.png, confused.json, samples.png, report.html
  --mode=predict    top-5 of the image files named last, printed
  --mode=export     StableHLO, SavedModel, TFLite in export/
  --mode=plan       memory and cycles on a TPU slice that is not there: plan.json, plan.png
  --mode=study      the paper's tables and figures, scaling: study/
  --mode=search     architectures, by one or more workers: search/

  python main.py --config=configs/digits.py --workdir=runs/digits --mode=evaluate
  python main.py --config=configs/transfer.py:folder,b0 --config.dataset=folder:photos --workdir=runs/photos

All knobs: configs/default.py. TPU VMs and pods: launch/README.md.
"""

# Flags and dispatch only: what a mode does is in efficientnet_jax/, so that notebooks and tests call the same functions.
import importlib
import os
import sys
import time

# Compiled programs are kept, so that a second start of the same run takes seconds.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', os.path.join(os.path.expanduser('~'), '.cache', 'efficientnet_jax'))

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

BEGAN = time.monotonic()  # train reports the seconds from here to its first step
# Module with the function (config, workdir) of the mode's name, imported when it is asked for.
MODES = {
    'train': 'training.loop', 'evaluate': 'evaluation.evaluate', 'predict': 'evaluation.predict', 'plan': 'tpu.planner',
    'export': 'export.export', 'study': 'study.study', 'search': 'search.search',
}  # fmt: skip

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Path of a config, for example configs/b7.py; --config.KNOB=VALUE overrides.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder for checkpoints, metrics and results.')
_MODE = flags.DEFINE_enum('mode', 'train', list(MODES), 'What to do.')
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0. TPU VMs, GKE and Slurm need none of these four.')
_PROCESSES = flags.DEFINE_integer('processes', None, 'Processes in this run; 1: this one alone, whatever the machine says.', lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which of them this is, from 0.')
_LOST_AFTER = flags.DEFINE_integer('lost_after_seconds', 30, 'All end when one has been silent for so long.', lower_bound=1)
_JSON = flags.DEFINE_bool('json', False, 'predict: print JSON.')
_PICTURE = flags.DEFINE_string('picture', None, 'predict: also write this .png, each image with its top-5 beside it.')
_FEATURES = flags.DEFINE_bool('features', False, 'predict: also write the pooled features of all images to --output.')
_OUTPUT = flags.DEFINE_string('output', 'features.npz', 'predict --features: the .npz file to write.')


def cleared(config):
    """The config with None for the text 'None': --config.remat=None turns a knob off, whatever its type."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            cleared(value)
        elif value == 'None':
            config[name] = None
    return config


def main(argv):
    logging.set_verbosity(logging.WARNING)
    config, workdir, mode = cleared(_CONFIG.value), _WORKDIR.value, _MODE.value
    if mode == 'plan':
        os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # the TPU is elsewhere; one that is here may be at work

    from efficientnet_jax.runs import library_logs

    library_logs.libraries()  # before jax, which sets a log level of its own
    from efficientnet_jax.runs import allocator, hosts

    try:
        if os.environ.get('JAX_PLATFORMS') == 'cpu':  # elsewhere the step's memory is not the host's
            allocator.keep_freed_memory()
        if workdir is None and mode != 'predict':
            raise ValueError(f'mode={mode} needs --workdir=DIR; only predict with --config.init_from goes without.')
        if argv[1:] and mode != 'predict':
            raise ValueError(f'mode={mode} takes flags alone, not {" ".join(argv[1:])!r}; image files are for --mode=predict.')
        if mode != 'plan':  # which needs no other host
            hosts.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS_ID.value, _LOST_AFTER.value)
        features = _OUTPUT.value if _FEATURES.value else None
        predict = {'images': argv[1:], 'as_json': _JSON.value, 'picture': _PICTURE.value, 'features': features}
        function = getattr(importlib.import_module(f'efficientnet_jax.{MODES[mode]}'), mode)
        function(config, workdir, **{'train': {'began': BEGAN}, 'predict': predict}.get(mode, {}))
    except Exception as error:
        hosts.leave(error)


def check_config_file(arguments):
    """Exits with what there is, where a --config=FILE[:ARGUMENT] is no file; ml_collections would raise a chain of four errors."""
    for path in (argument.partition('=')[2] for argument in arguments if argument.startswith('--config=')):
        if not os.path.isfile(path.partition(':')[0]):
            files = os.listdir(os.path.join(os.path.dirname(__file__), 'configs'))
            names = sorted(name[:-3] for name in files if name.endswith('.py') and name != '__init__.py')
            sys.exit(f'--config={path} is not a file. Configs: configs/NAME.py with NAME of {", ".join(names)}.')


if __name__ == '__main__':
    check_config_file(sys.argv[1:])
    flags.mark_flag_as_required('config')
    try:
        app.run(main)
    except AttributeError as error:  # main handles its own; this is --config.KNOB with a name that is no knob
        reason = error.args[0].args[0] if error.args and isinstance(error.args[0], KeyError) else error
        name, *near = str(reason).splitlines()
        sys.exit(' '.join([f'No such knob: {name}.', *near, 'All knobs: configs/default.py.']))
