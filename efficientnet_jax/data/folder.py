"""Folders of images by class: root/split/class/image (the layout of tfds.folder_dataset.ImageFolder) or root/class/image."""

import hashlib
import os

from efficientnet_jax.errors import NotThere, UserError

IMAGE_SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.webp')
HELD_OUT_FRACTION = 0.1


def find_images(root, split):
    """Returns (paths, labels, class names) of one split of a folder.

    split: TFDS slicing syntax. A folder without splits is divided here: of each class a tenth, at least one of two images, is
      'validation' and the rest is 'train'; which ones is decided by a hash of class/file, so it stays when images are added.
    The images of a split are in the order of that hash: a slice such as train[90%:] holds every class.
    Raises FileNotFoundError when the folder holds no images, UserError for no folder or a split that it does not have.
    """
    if not root:
        raise UserError("dataset='folder:' names no folder; give --config.dataset=folder:PATH with PATH/class/image.")
    images = _list_images(root)
    if not images:
        found = ', '.join(sorted(os.listdir(root))[:5]) if os.path.isdir(root) else 'no such folder'
        wanted = f'{root}/class/image or {root}/split/class/image ({", ".join(IMAGE_SUFFIXES)})'
        raise NotThere(f'dataset=folder:{root} has no images at {wanted}; found: {found}.')
    depths = {len(parts) for parts in images}
    if len(depths) > 1:
        examples = ' and '.join('/'.join(next(parts for parts in images if len(parts) == depth)) for depth in sorted(depths))
        raise UserError(f'dataset=folder:{root} mixes class/image and split/class/image: {examples}. Keep one layout.')
    if depths == {2}:
        images = _held_out(images)
    by_split = {}
    for parts in sorted(images, key=_hash):
        by_split.setdefault(parts[0], []).append(parts)
    chosen = _slice(root, split, by_split)
    class_names = sorted({parts[1] for parts in images})
    number = {class_name: i for i, class_name in enumerate(class_names)}
    written = 1 if depths == {2} else 0  # the split's name is in the path only when the folder has splits
    return [os.path.join(root, *parts[written:]) for parts in chosen], [number[parts[1]] for parts in chosen], class_names


def _list_images(root):
    """Returns [(class, file)] or [(split, class, file)] of all images at these two depths; hidden files and folders are passed over."""
    if '://' in root:
        import tensorflow as tf

        folders = tf.io.gfile.walk(root)
    else:
        folders = os.walk(root, followlinks=True)
    images = []
    for folder, _, files in folders:
        parts = [part for part in folder[len(root) :].split('/') if part]
        if len(parts) in (1, 2) and not any(part.startswith('.') for part in parts):
            images += [(*parts, name) for name in files if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith('.')]
    return images


def _held_out(images):
    """[(class, file)] -> [(split, class, file)]."""
    by_class = {}
    for parts in sorted(images, key=_hash):
        by_class.setdefault(parts[0], []).append(parts)
    result = []
    for members in by_class.values():
        n = max(1, round(HELD_OUT_FRACTION * len(members))) if len(members) > 1 else 0
        result += [('validation', *parts) for parts in members[:n]] + [('train', *parts) for parts in members[n:]]
    return result


def _hash(parts):
    return hashlib.sha256('/'.join(parts[-2:]).encode()).digest()


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
        raise UserError(f'split={split!r} of folder:{root} is empty; it has {table}.')
    return chosen


def split_info(name, examples):
    """What TFDS knows of a split, for its slicing syntax: name and number of examples."""
    import tensorflow_datasets as tfds

    return tfds.core.SplitInfo(name=name, shard_lengths=[examples], num_bytes=0)
