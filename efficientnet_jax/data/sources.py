"""Random access to encoded images and labels: the digits, any prepared TFDS data set, any folder of images by class.

    source = open_source('imagenet2012', 'train[:-10000]')
    encoded, labels = source.read([5, 0, 1281000])

Every source reads any example by its index, so that the order of training is a function of numbers and not of files.
"""

import difflib
import os

import numpy as np

from efficientnet_jax.data import folder, record_index
from efficientnet_jax.errors import NotThere, UserError

CACHE_SHARE = 0.8
OBJECT_BYTES = 200  # Python's own for an example: a tuple, a bytes object, an int, a place in a list


class CorruptRecord(UserError):
    """A record that is there but cannot be parsed. The message names it."""


class Source:
    """Examples by index. `read` may be called from several threads.

    name: what the user wrote, with the split. num_classes: int. class_names: tuple of str, or None where unknown.
    """

    def __init__(self, name, length, num_classes, class_names, total_bytes):
        self.name = name
        self.num_classes = num_classes
        self.class_names = class_names
        self._length = length
        self._total_bytes = total_bytes

    def __len__(self):
        return self._length

    def read(self, indices):
        """Returns (list of encoded image bytes, int32 labels [n]) for a sequence of n indices.

        Raises CorruptRecord when a record cannot be parsed, OSError when its file cannot be read.
        """
        examples = [self._read_one(int(i)) for i in indices]
        return [image for image, _ in examples], np.array([label for _, label in examples], np.int32)

    def describe(self, index):
        """Returns a name for one example that a person can find again: a file's path, or a shard and a position."""
        return f'{self.name} example {index}'

    def size_bytes(self):
        """Returns the bytes that all encoded examples take, counted without reading them."""
        return int(self._total_bytes())


class TfdsSource(Source):
    """A prepared TFDS data set: array_record through TFDS's own data source, tfrecord through an index of offsets."""

    def __init__(self, name, builder, split):
        import tensorflow_datasets as tfds

        self._skip_decoding = {'image': tfds.decode.SkipDecoding()}
        self._features = builder.info.features
        self._records = None
        try:
            self._examples = builder.as_data_source(split, decoders=self._skip_decoding)
        except NotImplementedError:
            self._examples = self._records = record_index.open_records(builder, split)
        label = self._features['label']
        names = tuple(label.names)
        super().__init__(
            name=name,
            length=len(self._examples),
            num_classes=label.num_classes,
            class_names=None if names[0] == '0' else names,  # TFDS counts where a data set has no names
            total_bytes=self._records.total_bytes if self._records else lambda: _split_bytes(builder.info.splits[split]),
        )

    def _read_one(self, index):
        record = self._records.read(index) if self._records else None
        try:
            if self._records:
                example = self._features.deserialize_example_np(record, decoders=self._skip_decoding)
            else:
                example = self._examples[index]
            return bytes(example['image']), int(example['label'])
        except Exception as e:  # TFDS, protobuf, array_record and TensorFlow each raise their own kind for a bad record
            raise CorruptRecord(f'{self.describe(index)} cannot be parsed: {e}') from e

    def describe(self, index):
        return self._records.describe(index) if self._records else super().describe(index)


class FolderSource(Source):
    """Image files under root/[split/]class/."""

    def __init__(self, name, paths, labels, class_names):
        self._paths = paths
        self._labels = labels
        super().__init__(
            name=name,
            length=len(paths),
            num_classes=len(class_names),
            class_names=tuple(class_names),
            total_bytes=lambda: sum(record_index.file_size(path) for path in paths),
        )

    def _read_one(self, index):
        with record_index.open_file(self._paths[index]) as f:
            return f.read(), int(self._labels[index])

    def describe(self, index):
        return folder.printable(self._paths[index])


class CachedSource(Source):
    """Another source, whose encoded examples stay in memory once they are read.

    Every host comes to read every example, so each needs room for all. Raises UserError when they do not fit into `limit_bytes`,
    by default CACHE_SHARE of the memory that is free now.
    """

    def __init__(self, source, limit_bytes=None):
        needed = source.size_bytes() + OBJECT_BYTES * len(source)
        limit = CACHE_SHARE * free_bytes() if limit_bytes is None else limit_bytes
        if needed > limit:
            raise UserError(
                f'cache=True needs {needed / 2**30:.2f} GiB on each host for the {len(source):,} examples of {source.name}, more than '
                f'{limit / 2**30:.2f} GiB (at most {CACHE_SHARE:.0%} of the free memory); set cache=False, or use hosts with more memory.'
            )
        super().__init__(source.name, len(source), source.num_classes, source.class_names, source.size_bytes)
        self.describe = source.describe
        self._source = source
        self._examples = [None] * len(source)

    def _read_one(self, index):
        if self._examples[index] is None:
            (encoded,), (label,) = self._source.read([index])
            self._examples[index] = (encoded, int(label))
        return self._examples[index]


def free_bytes():
    """Bytes of memory that this process can still get: what Linux says is available, or what its container leaves."""
    with open('/proc/meminfo') as f:
        lines = dict(line.split(':') for line in f)
    free = int(lines['MemAvailable'].split()[0]) * 1024
    try:
        with open('/sys/fs/cgroup/memory.max') as limit, open('/sys/fs/cgroup/memory.current') as used:
            free = min(free, int(limit.read()) - int(used.read()))
    except (OSError, ValueError):  # no container, or one without a limit ('max')
        pass
    return max(0, free)


def open_source(dataset, split, data_dir=None):
    """Opens one split of a data set.

    dataset: 'digits'; a TFDS name ('imagenet2012', 'cifar10', 'name/config:version'); or 'folder:DIR' with DIR/split/class/image or
      DIR/class/image, which is divided here into 'train' and 'validation' (see folder.find_images).
    split: TFDS slicing syntax: 'train', 'train[:-10000]', 'train[98%:]', 'train+validation'.
    data_dir: where TFDS data sets are; None means $TFDS_DATA_DIR or ~/tensorflow_datasets. Not used by folders.
    Returns a Source. Raises FileNotFoundError, with the command that helps, for data that are not there; UserError for the rest.
    """
    name = f'{dataset}:{split}'
    if dataset.startswith('folder:'):
        return FolderSource(name, *folder.find_images(os.path.expanduser(dataset.removeprefix('folder:')), split))
    if dataset == 'digits':
        from efficientnet_jax.data import digits

        builder = digits.builder(data_dir)
    else:
        builder = _tfds_builder(dataset, data_dir)
    features = builder.info.features
    if not {'image', 'label'} <= set(features) or not hasattr(features['label'], 'num_classes'):
        raise UserError(f'dataset={dataset!r} must have the features `image` and `label` (a ClassLabel); it has {sorted(features)}.')
    if builder.info.splits:
        _check_split(dataset, split, builder.info.splits)
    try:
        source = TfdsSource(name, builder, split)
        if dataset == 'digits':
            source.class_names = tuple('0123456789')
        return source
    except Exception as e:
        if builder.info.splits:
            raise
        raise NotThere(_how_to_prepare(dataset, data_dir, builder)) from e


def _tfds_builder(dataset, data_dir):
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(dataset, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as e:
        names = ['digits', *tfds.list_builders(with_community_datasets=False)]
        near = difflib.get_close_matches(dataset.split('/')[0].split(':')[0], names, n=5, cutoff=0.6)
        hint = f'Near names: {", ".join(near)}.' if near else 'https://www.tensorflow.org/datasets/catalog lists them.'
        if os.path.isdir(dataset):
            hint = f'For the images in that folder: folder:{dataset}.'
        raise UserError(f"dataset={dataset!r} is not 'digits', a TFDS name or 'folder:DIR'. {hint}") from e


def _how_to_prepare(dataset, data_dir, builder):
    # Not `tfds build`, which cannot start without apache_beam (TFDS 4.9.10).
    make = (
        f"import tensorflow_datasets as t; t.builder('{dataset}', data_dir={data_dir!r}, file_format='array_record').download_and_prepare()"
    )
    command = 'launch/prepare_imagenet.sh' if builder.name == 'imagenet2012' else f'python -c "{make}"'
    return (
        f'dataset={dataset!r} is not prepared: {builder.data_path} is missing or has no data '
        f'(data_dir={data_dir!r}, TFDS_DATA_DIR={os.environ.get("TFDS_DATA_DIR")!r}). '
        f'Prepare it with `{command}`, or set data_dir to where it is.'
    )


def _check_split(dataset, split, splits):
    table = ', '.join(f'{name} ({info.num_examples:,})' for name, info in splits.items())
    try:
        examples = sum(part.take for part in splits[split].file_instructions)
    except (ValueError, KeyError, AssertionError) as e:
        raise UserError(f'split={split!r} does not fit {dataset!r}, which has {table}. {e}') from e
    if examples < 1:
        raise UserError(f'split={split!r} of {dataset!r} is empty; it has {table}.')


def _split_bytes(split):
    """Bytes of the shards that a split touches, in proportion to the examples that it takes from each."""
    return sum(record_index.file_size(part.filename) * part.take / part.examples_in_shard for part in split.file_instructions)
