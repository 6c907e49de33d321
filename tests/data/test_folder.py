import logging
import os
import pathlib

import numpy as np
import pytest

from efficientnet_jax.data import folder
from efficientnet_jax.data.sources import open_source
from efficientnet_jax.evaluation.predict import find
from tests.data.image_files import encode, photo, write_folder

PNG = encode(photo(4, 5), 'PNG')


def write(root, *paths):
    """Writes the same picture to every path below root."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(PNG)


def files(root, split):
    """The files of a split, below root."""
    return {os.path.relpath(path, root) for path in folder.find_images(str(root), split)[0]}


def test_folder_with_splits(tmp_path):
    write_folder(tmp_path, ['cat', 'dog'], 6, split='train')
    write_folder(tmp_path, ['cat', 'dog', 'emu'], 2, split='test')
    train, test = open_source(f'folder:{tmp_path}', 'train'), open_source(f'folder:{tmp_path}', 'test')
    assert (len(train), len(test)) == (12, 6)
    assert train.num_classes == test.num_classes == 3 and train.class_names == ('cat', 'dog', 'emu')
    for source in (train, test):
        encoded, labels = source.read(range(len(source)))
        for i, label in enumerate(labels):
            assert source.class_names[label] in source.describe(i)
        assert source.size_bytes() == sum(map(len, encoded))
    halves = [open_source(f'folder:{tmp_path}', f'train[{part}]') for part in (':50%', '50%:')]
    assert sorted(path for half in halves for path in map(half.describe, range(6))) == sorted(map(train.describe, range(12)))
    assert {0, 1} == set(halves[0].read(range(6))[1])  # a slice is not one class


def test_folder_of_two_layouts_and_missing_splits(tmp_path):
    write_folder(tmp_path, ['a'], 3, split='train')
    with pytest.raises(ValueError, match=r"split='validation' does not fit folder:.*, which has train \(3\)"):
        open_source(f'folder:{tmp_path}', 'validation')
    with pytest.raises(ValueError, match=r"split='train\[0:0\]' of folder:.* is empty; it has train \(3\)"):
        open_source(f'folder:{tmp_path}', 'train[0:0]')
    write_folder(tmp_path, ['b'], 1)
    with pytest.raises(ValueError, match=r'mixes class/image and split/class/image: b/0.png and train/a/\d.png. Keep one layout'):
        open_source(f'folder:{tmp_path}', 'train')


def test_a_tenth_of_the_files_is_held_out_and_the_rest_is_trained_on(tmp_path):
    write(tmp_path, *(f'{name}/{i}.png' for name in 'ab' for i in range(500)))
    held_out, train = files(tmp_path, 'validation'), files(tmp_path, 'train')
    assert not held_out & train and len(held_out | train) == 1000
    assert 70 < len(held_out) < 130
    assert {path[0] for path in held_out} == {'a', 'b'}
    assert held_out == {path for path in held_out | train if folder.is_held_out(path.split('/'))}


def test_no_file_changes_its_side_when_images_come_and_go(tmp_path):
    """From 30 to 200 in small steps, a class more, and half of the old ones removed."""
    sides = {}

    def check():
        found = {split: files(tmp_path, split) for split in ('train', 'validation')}
        for split, paths in found.items():
            assert [path for path in paths if sides.setdefault(path, split) != split] == []
        return sum(map(len, found.values()))

    write(tmp_path, *(f'cat/{i}.png' for i in range(30)))
    for i in range(30, 200, 5):
        write(tmp_path, *(f'cat/{j}.png' for j in range(i, i + 5)))
        assert check() == i + 5
    write(tmp_path, *(f'dog/{i}.png' for i in range(100)))
    assert check() == 300
    for i in range(0, 200, 2):
        os.remove(tmp_path / 'cat' / f'{i}.png')
    assert check() == 200


def test_the_side_of_a_file_is_this_for_ever():
    """Runs are continued with later versions of this code."""
    held_out = [i for i in range(60) if folder.is_held_out(('cat', f'{i}.jpg'))]
    assert held_out == [1, 14, 36, 43, 47, 53]


def test_a_folder_too_small_to_hold_anything_out_says_so(tmp_path):
    write(tmp_path, 'a/0.png', 'b/0.png')
    with pytest.raises(
        ValueError, match=r"split='validation' of folder:.* is empty; it has train \(2\), validation \(0\). A file is held out"
    ):
        folder.find_images(str(tmp_path), 'validation')


def test_files_that_are_passed_over_are_counted_and_named(tmp_path, caplog):
    write(tmp_path, *(f'cat/{i}.png' for i in range(3)), 'cat/a.tif', 'cat/b.TIFF', 'cat/c.avif', 'cat/d.jfif')
    write(
        tmp_path, *(f'bird/{i}.heic' for i in range(7)), 'cat/notes.txt', 'loose.png', 'cat/x/y/deep.png', '.git/x.png', 'cat/.hidden.png'
    )
    with caplog.at_level(logging.WARNING):
        paths, _, names = folder.find_images(str(tmp_path), 'train+validation')
    assert len(paths) == 7 and names == ['cat']
    (line,) = [record.getMessage() for record in caplog.records]
    for part in (
        "7 with the unknown suffix '.heic' (bird/0.heic, bird/1.heic, bird/2.heic, bird/3.heic, bird/4.heic and 2 more)",
        "1 with the unknown suffix '.txt' (cat/notes.txt)",
        '1 deeper than split/class/image (cat/x/y/deep.png)',
        '1 not in a folder of a class (loose.png)',
    ):
        assert part in line
    assert 'hidden' not in line and '.git' not in line


def test_a_folder_of_nothing_but_unknown_files_names_them(tmp_path):
    write(tmp_path, 'cat/a.heic', 'a.png')
    message = (
        r"has no images at .*found: a.png, cat. Passed over: 1 not in a folder of a class \(a.png\); 1 with the unknown suffix '.heic'"
    )
    with pytest.raises(FileNotFoundError, match=message):
        folder.find_images(str(tmp_path), 'train')


@pytest.fixture
def odd(tmp_path):
    """Two classes with links in circles, a FIFO, links to nothing, a folder with the name of an image."""
    write(tmp_path, *(f'{name}/{i}.png' for name in ('cat', 'dog') for i in range(3)))
    (tmp_path / 'cat' / 'up').symlink_to('..')
    (tmp_path / 'self').symlink_to('.')
    (tmp_path / 'cat' / 'loop.jpg').symlink_to('loop.jpg')
    (tmp_path / 'cat' / 'gone.jpg').symlink_to('nowhere')
    os.mkfifo(tmp_path / 'dog' / 'fifo.jpg')
    (tmp_path / 'dog' / 'folder.jpg').mkdir()
    return tmp_path


def test_walks_end_and_name_what_is_no_file(odd, caplog):
    paths, _, names = folder.find_images(str(odd), 'train+validation')
    assert len(paths) == 6 and names == ['cat', 'dog']
    line = caplog.records[0].getMessage()
    assert '2 that are links to folders and not followed (cat/up, self)' in line
    assert 'cat/loop.jpg' in line and '1 that are dangling links (cat/gone.jpg)' in line
    assert '1 that are neither files nor folders (dog/fifo.jpg)' in line


def test_prediction_lists_the_same_folder_to_its_end(odd, caplog):
    write(odd, 'a/b/c/d/e.webp', 'a/notes.txt')
    assert [os.path.relpath(path, odd) for path in find([str(odd)])] == [
        'a/b/c/d/e.webp',
        *sorted(f'{n}/{i}.png' for n in ('cat', 'dog') for i in range(3)),
    ]
    line = caplog.records[0].getMessage()
    assert 'dog/fifo.jpg' in line and 'a/notes.txt' in line and 'cat/up' in line
    with pytest.raises(ValueError, match=r'fifo.jpg is not a file; name image files .JPEG, PNG, GIF, BMP, WEBP, TIFF, AVIF'):
        find([str(odd / 'dog' / 'fifo.jpg')])


def test_two_folders_that_link_to_each_other_end(tmp_path):
    write(tmp_path, 'cat/1.png', 'dog/1.png')
    (tmp_path / 'cat' / 'dogs').symlink_to('../dog')
    (tmp_path / 'dog' / 'cats').symlink_to('../cat')
    with pytest.raises(ValueError, match=r'mixes class/image and split/class/image: cat/1.png and cat/dogs/1.png. Keep one layout'):
        folder.find_images(str(tmp_path), 'train')


def test_a_class_may_be_a_link_to_a_folder_elsewhere(tmp_path):
    write(tmp_path / 'elsewhere', *(f'{i}.png' for i in range(3)))
    (tmp_path / 'root').mkdir()
    (tmp_path / 'root' / 'cat').symlink_to(tmp_path / 'elsewhere')
    assert len(folder.find_images(str(tmp_path / 'root'), 'train+validation')[0]) == 3


def test_a_folder_that_may_not_be_opened_is_named(tmp_path, monkeypatch, caplog):
    write(tmp_path, 'cat/1.png', 'dog/1.png')
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith('dog'):
            raise PermissionError(13, 'Permission denied', path)
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    assert len(folder.find_images(str(tmp_path), 'train+validation')[0]) == 1
    assert '1 that cannot be opened (Permission denied) (dog)' in caplog.text


def test_names_that_are_not_utf_8_are_read_and_can_be_printed(tmp_path):
    root = os.fsencode(tmp_path)
    for name in (b'caf\xe9', b'tea'):
        os.mkdir(root + b'/' + name)
        for i in range(3):
            pathlib.Path(os.fsdecode(root + b'/' + name + b'/\xff%d.png' % i)).write_bytes(PNG)
    source = open_source(f'folder:{tmp_path}', 'train+validation')
    assert source.class_names == ('caf\\xe9', 'tea')
    encoded, labels = source.read(range(6))
    assert encoded == [PNG] * 6 and np.bincount(labels).tolist() == [3, 3]
    for i in range(6):
        assert source.describe(i).encode().startswith(root) and '\\xff' in source.describe(i)
