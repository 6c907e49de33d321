"""Folders of images by class: root/split/class/image (the layout of tfds.folder_dataset.ImageFolder) or root/class/image."""

import collections
import hashlib
import logging
import os

from efficientnet_jax.data import formats
from efficientnet_jax.errors import NotThere, UserError

IMAGE_SUFFIXES = formats.SUFFIXES
HELD_OUT_FRACTION = 0.1
LOCAL_DEPTH = 2  # folders below the root that images may be in; links are followed so far
NAMED = 5  # files of each kind that a warning names


def find_images(root, split):
    """Returns (paths, labels, class names) of one split of a folder.

    split: TFDS slicing syntax. A folder without splits is divided here: a file is in 'validation' where a hash of its path below the folder
      falls into the first tenth, else in 'train'. So a file keeps its side for good, whatever is added or removed; of a small class the
      held-out part may be empty.
    The images of a split are in the order of another hash: a slice such as train[90%:] holds every class.
    Files that are no images by their suffix, deeper than the layout, or neither files nor folders are counted and named in a warning.
    Raises FileNotFoundError when the folder holds no images, UserError for no folder or a split that it does not have.
    """
    if not root:
        raise UserError("dataset='folder:' names no folder; give --config.dataset=folder:PATH with PATH/class/image.")
    images, others = list_images(root)
    passed_over = describe_others(others)
    if not images:
        found = ', '.join(map(printable, sorted(os.listdir(root))[:5])) if os.path.isdir(root) else 'no such folder'
        wanted = f'{root}/class/image or {root}/split/class/image ({", ".join(IMAGE_SUFFIXES)})'
        raise NotThere(f'dataset=folder:{root} has no images at {wanted}; found: {found}.{passed_over and f" Passed over: {passed_over}."}')
    if passed_over:
        logging.getLogger(__name__).warning('dataset=folder:%s: passed over %s.', root, passed_over)
    depths = {len(parts) for parts in images}
    if len(depths) > 1:
        examples = ' and '.join(printable('/'.join(next(parts for parts in images if len(parts) == depth))) for depth in sorted(depths))
        raise UserError(f'dataset=folder:{root} mixes class/image and split/class/image: {examples}. Keep one layout.')
    divided_here = depths == {2}
    if divided_here:
        images = [('validation' if is_held_out(parts) else 'train', *parts) for parts in images]
    by_split = {'train': [], 'validation': []} if divided_here else {}
    for parts in sorted(images, key=_order):
        by_split.setdefault(parts[0], []).append(parts)
    chosen = _slice(root, split, by_split)
    class_names = sorted({parts[1] for parts in images})
    number = {class_name: i for i, class_name in enumerate(class_names)}
    written = 1 if divided_here else 0  # the split's name is in the path only when the folder has splits
    paths = [os.path.join(root, *parts[written:]) for parts in chosen]
    return paths, [number[parts[1]] for parts in chosen], [printable(name) for name in class_names]


def list_images(root, depths=(1, 2)):
    """Returns (images, others) below a folder: the images as tuples of names below it, (class, file) or (split, class, file), and the rest.

    depths: how many folders an image may be in; None: any number. others: [(path below root, why it is passed over)].
    Hidden files and folders are passed over without a word. Ends whatever links there are: a link is followed to LOCAL_DEPTH at most, and
    never to a folder that it is itself in.
    """
    entries = _remote(root) if '://' in root else _local(root, [], set(), LOCAL_DEPTH if depths else 0)
    images, others = [], []
    for parts, problem in entries:
        name = parts[-1]
        if problem is None and not name.lower().endswith(IMAGE_SUFFIXES):
            problem = f'with the unknown suffix {os.path.splitext(name)[1]!r}'
        if problem is None and depths and len(parts) - 1 not in depths:
            problem = 'not in a folder of a class' if len(parts) == 1 else 'deeper than split/class/image'
        if problem is None:
            images.append(tuple(parts))
        else:
            others.append(('/'.join(parts), problem))
    return images, others


def describe_others(others):
    """'3 files deeper than split/class/image (a, b, c); ...' of what list_images gives; '' for nothing."""
    by_problem = collections.defaultdict(list)
    for path, problem in sorted(others):
        by_problem[problem].append(printable(path))
    told = []
    for problem, paths in sorted(by_problem.items()):
        more = f' and {len(paths) - NAMED:,} more' if len(paths) > NAMED else ''
        told.append(f'{len(paths):,} {problem} ({", ".join(paths[:NAMED])}{more})')
    return '; '.join(told)


def printable(path):
    """A path for people: bytes that are not UTF-8 are written as \\xNN."""
    return os.fsencode(path).decode('utf-8', 'backslashreplace')


def is_held_out(parts):
    """Whether a file, (class, file), is in the tenth that is kept from training; a function of these two names alone."""
    return int.from_bytes(_digest(b'held out ', parts)[:8], 'big') < HELD_OUT_FRACTION * 2**64


def _order(parts):
    return _digest(b'', parts[-2:])


def _digest(purpose, parts):
    return hashlib.sha256(purpose + os.fsencode('/'.join(parts))).digest()


def _local(root, parts, above, follow):
    """Yields (names below root, None or why it is no file to read) of all that is not hidden. above: (device, inode) of the folders it is in."""
    folder = os.path.join(root, *parts)
    try:
        status = os.stat(folder)
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        if parts:  # a root that is not there has no entries, which find_images tells of
            yield parts, f'that cannot be opened ({error.strerror})'
        return
    above = above | {(status.st_dev, status.st_ino)}
    for entry in entries:
        if entry.name.startswith('.'):
            continue
        here = [*parts, entry.name]
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
            if is_folder and entry.is_symlink():
                target = entry.stat()
                if len(parts) >= follow or (target.st_dev, target.st_ino) in above:
                    yield here, 'that are links to folders and not followed'
                    continue
        except OSError as error:
            yield here, f'that cannot be opened ({error.strerror})'
            continue
        if is_folder:
            yield from _local(root, here, above, follow)
        elif is_file:
            yield here, None
        else:
            yield here, 'that are dangling links' if entry.is_symlink() else 'that are neither files nor folders'


def _remote(root):
    import tensorflow as tf

    for folder, _, files in tf.io.gfile.walk(root):
        parts = [part for part in folder[len(root) :].split('/') if part]
        if not any(part.startswith('.') for part in parts):
            yield from (([*parts, name], None) for name in sorted(files) if not name.startswith('.'))


def _slice(root, split, by_split):
    import tensorflow_datasets as tfds

    table = ', '.join(f'{name} ({len(members):,})' for name, members in sorted(by_split.items()))
    infos = {name: split_info(name, len(members)) for name, members in by_split.items()}
    try:
        pieces = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except (ValueError, KeyError, AssertionError) as e:
        raise UserError(f'split={split!r} does not fit folder:{root}, which has {table}. {e}') from e
    chosen = [parts for piece in pieces for parts in by_split[piece.splitname][piece.from_ : piece.to]]
    if not chosen:
        few = ' A file is held out with probability 0.1: add images, or take a slice such as train[80%:].' if split == 'validation' else ''
        raise UserError(f'split={split!r} of folder:{root} is empty; it has {table}.{few}')
    return chosen


def split_info(name, examples):
    """What TFDS knows of a split, for its slicing syntax: name and number of examples."""
    import tensorflow_datasets as tfds

    return tfds.core.SplitInfo(name=name, shard_lengths=[examples], num_bytes=0)
