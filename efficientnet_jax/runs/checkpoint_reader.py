"""One checkpoint folder -> its state or its weights, whole and right, or an error that says whether the files or this machine are to blame."""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from efficientnet_jax.errors import StorageError
from efficientnet_jax.runs import integrity
from efficientnet_jax.runs.hosts import everywhere, on_first
from efficientnet_jax.runs.mesh import make_mesh, replicated
from efficientnet_jax.runs.shapes import check_shapes

ITEM = 'default'  # the folder of the arrays in a checkpoint, as Orbax's CheckpointManager calls it


class Damaged(StorageError):
    """A checkpoint whose files or arrays are not those that were saved."""


def restore_state(folder: pathlib.Path, abstract_state):
    """The state in a checkpoint's folder; abstract_state is a tree of jax.ShapeDtypeStruct with shardings. All hosts call it.

    Raises, the same on all hosts, ShapeMismatch listing every array of another name, shape or dtype, Damaged, and StorageError where the
    files are what was written and cannot be restored here.
    """
    saved, sums = _described(folder)
    check_shapes(saved, abstract_state, str(folder), weights_only=False)

    def read():
        with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
            return handler.restore(epath.Path(folder / ITEM), args=ocp.args.StandardRestore(abstract_state))

    return _checked(folder, _read(folder, read), sums)


def restore_weights(folder: pathlib.Path, abstract_weights=None) -> dict[str, Any]:
    """{'params', 'batch_stats', 'ema' where it was saved}, without the optimizer's state, whatever optimizer it was.

    abstract_weights: {'params', 'batch_stats'} of jax.ShapeDtypeStruct with shardings, for the averages as well; None: those that
    were saved, on every device. Raises as `restore_state`.
    """
    saved, sums = _described(folder)
    if abstract_weights is None:
        everywhere_alike = replicated(make_mesh())  # on several hosts too: the sums count each array once
        weights = {name: saved[name] for name in ('params', 'batch_stats')}
        abstract_weights = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere_alike), weights)
    check_shapes(saved, abstract_weights, str(folder))
    wanted = abstract_weights | ({'ema': abstract_weights} if saved.get('ema') else {})

    def read():
        with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
            args = ocp.args.PyTreeRestore(wanted, ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True)
            return handler.restore(epath.Path(folder / ITEM), args=args)

    return _checked(folder, _read(folder, read), {name: value for name, value in sums.items() if name.split('/')[0] in wanted})


def _described(folder: pathlib.Path) -> tuple[Any, dict[str, int]]:
    """(tree of the metadata of what was saved, bit sum of each array)."""

    def read():
        with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
            return integrity.read_contents(folder).arrays, handler.metadata(epath.Path(folder / ITEM)).tree

    sums, saved = _read(folder, read)
    return saved, sums


def _read(folder: pathlib.Path, read: Callable[[], Any]) -> Any:
    """What read() gives, when it worked on every host. Else the files decide, for all hosts, between Damaged and StorageError."""
    value, error = None, None
    try:
        value = read()
        jax.block_until_ready(value)
    except Exception as raised:  # whatever damage, TensorStore, the system or a full device raise: its kind decides nothing
        error = raised
    if everywhere(error is None):
        return value
    if found := on_first(lambda: integrity.damages(folder)):
        more = f' and {len(found) - 4} more' if len(found) > 4 else ''
        raise Damaged(f'Checkpoint {folder} is damaged: {"; ".join(found[:4])}{more}.') from error
    cause = 'the log of another host says why' if error is None else first_line(error)
    raise StorageError(
        f'Checkpoint {folder} cannot be restored here ({cause}), though its files are what was written: it is intact and stays where it is. '
        'Mend the cause (limits, memory, permissions, another user of the device, versions of libraries) and give the same command again.'
    ) from error


def _checked(folder: pathlib.Path, tree, wanted: dict[str, int]):
    """The tree, when its bits are those that were saved."""
    found = integrity.bit_sums(tree)
    changed = sorted(name for name in wanted.keys() | found.keys() if found.get(name) != wanted.get(name))
    if changed:
        more = f' and {len(changed) - 4} more' if len(changed) > 4 else ''
        raise Damaged(f'Checkpoint {folder} is damaged: {", ".join(changed[:4])}{more} are not the arrays that were saved.')
    return tree


def first_line(error: BaseException) -> str:
    """Kind and text of an exception on one line: TensorStore names the array first and the cause last."""
    text = ' '.join(re.split(r' \[(?:source locations|os_error_code|tensorstore_spec)', str(error))[0].split())
    return f'{type(error).__name__}: {text if len(text) <= 400 else f"{text[:150]} ... {text[-250:]}"}'
