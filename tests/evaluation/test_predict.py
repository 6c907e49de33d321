"""What predict refuses before it builds anything; what it computes is tested in weights/test_init_from.py."""

import pytest

from configs import default
from efficientnet_jax.data.imagenet_classes import class_names
from efficientnet_jax.evaluation.predict import find, predict


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'images': []}, 'mode=predict needs image files or folders'),
        ({'images': ['gone.jpg']}, 'gone.jpg is not a file; name image files'),
        ({'images': ['a.png'], 'picture': 'top5.jpg'}, "--picture='top5.jpg' must end in .png"),
        ({'images': ['a.png'], 'features': 'f.h5'}, "--output='f.h5' must end in .npz"),
        ({'images': ['a.png'], 'features': '/gone/f.npz'}, "--output='/gone/f.npz' must be in a folder that is there; make /gone first"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        predict(default.get_config(), None, **arguments)


def test_neither_workdir_nor_weights(tmp_path, data_dir):
    (tmp_path / 'a.png').write_bytes(b'')
    config = default.get_config()
    config.dataset, config.eval_split, config.data_dir = 'digits', 'test', data_dir
    with pytest.raises(ValueError, match=r'workdir=None has no checkpoints; .* or name weights with --config.init_from'):
        predict(config, None, [str(tmp_path / 'a.png')])


def test_folders_are_searched_at_any_depth(tmp_path):
    (tmp_path / 'b').mkdir()
    for name in ('z.PNG', 'b/a.jpg', 'notes.txt'):
        (tmp_path / name).write_bytes(b'')
    assert find([str(tmp_path)]) == [str(tmp_path / 'b/a.jpg'), str(tmp_path / 'z.PNG')]
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='empty is a folder without image files'):
        find([str(tmp_path / 'empty')])


def test_imagenet_names():
    names = class_names()
    assert len(names) == 1000 and (names[0], names[281], names[999]) == ('tench', 'tabby', 'toilet tissue')
