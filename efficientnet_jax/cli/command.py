"""Trains, evaluates and studies EfficientNets: python main.py --config=configs/b7.py --workdir=DIR [--mode=MODE] [--config.OPTION=VALUE ...]

  --mode=train      trains, or resumes: checkpoints/, metrics.jsonl, log.txt, curves.png, result.json, report.html
  --mode=evaluate   a whole split: result.json, log.txt, confusion.png, confused.json, samples.png, report.html
  --mode=predict    top-5 of the image files named last, printed
  --mode=export     StableHLO, SavedModel, TFLite in export/
  --mode=plan       memory and cycles on a hypothetical TPU slice: plan.json, plan.png
  --mode=study      the paper's tables and figures, scaling: study/
  --mode=search     architectures, by one or more workers: search/

  python main.py --config=configs/digits.py --workdir=runs/digits
  python main.py --config=configs/transfer.py:folder,b0 --config.dataset=folder:photos --workdir=runs/photos
  python main.py --workdir=runs/photos --mode=predict a.jpg     # the config is that of the run; overrides win

`python -m efficientnet_jax` and the installed `efficientnet-jax` are the same command. --config.OPTION=None turns an optional option off.
All options: configs/default.py. TPU VMs and pods: launch/README.md.
"""

# Dispatch only: what a mode does is in the other rooms, so that notebooks and tests call the same functions.
from __future__ import annotations

import faulthandler
import importlib
import importlib.util
import os
import sys
import time

BEGAN = time.monotonic()  # train reports the seconds from here to its first step
# Module with the function (config, workdir) of the mode's name, imported when it is asked for.
MODES = {
    'train': 'training.loop', 'evaluate': 'evaluation.evaluate', 'predict': 'evaluation.predict', 'plan': 'tpu.planner',
    'export': 'export.export', 'study': 'study.study', 'search': 'search.search',
}  # fmt: skip


def main(words: list[str] | None = None) -> None:
    """Runs the command of sys.argv. Ends with status 1 and one line for what a person must mend; README lists the others."""
    _open_standard_streams()
    if importlib.util.find_spec('ml_collections') is None:
        sys.exit("The command needs more than the library's core: pip install 'efficientnet_jax[train]'.")
    from efficientnet_jax.cli import configs, flags
    from efficientnet_jax.errors import StorageError, UserError

    try:
        command = flags.parse(sys.argv[1:] if words is None else words, __doc__, list(MODES))
        config = configs.config_of(command.flags.config, command.flags.workdir, command.overrides)
    except (UserError, StorageError) as error:
        if os.environ.get('EFFICIENTNET_JAX_TRACEBACK'):
            raise
        sys.exit(str(error))
    faulthandler.enable()
    _prepare_libraries(command.flags.mode)
    from efficientnet_jax.runs import hosts

    try:
        _run(command, config)
    except Exception as error:
        hosts.leave(error)


def _run(command, config) -> None:
    from efficientnet_jax.runs import allocator, hosts

    words, mode = command.flags, command.flags.mode
    if os.environ.get('JAX_PLATFORMS') == 'cpu':  # elsewhere the step's memory is not the host's
        allocator.keep_freed_memory()
    if mode != 'plan':  # which needs no other host
        hosts.start(words.coordinator, words.processes, words.process_id, words.lost_after_seconds)
    more = {'train': {'began': BEGAN}}
    features = (words.output or 'features.npz') if words.features else None
    more['predict'] = {'images': command.images, 'as_json': words.json, 'picture': words.picture, 'features': features}
    function = getattr(importlib.import_module(f'efficientnet_jax.{MODES[mode]}'), mode)
    function(config, words.workdir, **more.get(mode, {}))


def _prepare_libraries(mode: str) -> None:
    """What must be said before jax is imported."""
    # Compiled programs are kept, so that a second start of the same run takes seconds.
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', os.path.join(os.path.expanduser('~'), '.cache', 'efficientnet_jax'))
    if mode == 'plan':
        os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # the TPU is elsewhere; one that is here may be at work
    from absl import flags, logging

    from efficientnet_jax.runs import library_logs

    flags.FLAGS(sys.argv[:1])  # of libraries: none are given, and absl logs to stderr without a note on that
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    library_logs.libraries()  # before jax, which sets a log level of its own


def _open_standard_streams() -> None:
    """Gives a closed stdin, stdout or stderr (2>&-) its number again, which the next file opened would have, with all that is said there in it."""
    for number, name in enumerate(('stdin', 'stdout', 'stderr')):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, 'w' if number else 'r', closefd=False))
