"""Pictures draw any name as it is, and one that cannot be drawn never ends a run."""

import errno
import json
import os

import matplotlib.figure
import numpy as np
import pytest

from efficientnet_jax.evaluation import predict
from efficientnet_jax.reporting import pictures

NAMES = ['$1_$x', '$100_$200', 'price $1_$2', r'a\$b$', b'caf\xe9'.decode(errors='surrogateescape'), '猫', '_^{', '%s']
IMAGES = np.zeros((len(NAMES), 8, 8, 3), np.uint8)


@pytest.fixture
def drawn(monkeypatch):
    """The texts of each picture that is saved."""
    texts, save = [], matplotlib.figure.Figure.savefig

    def savefig(figure, *args, **kwargs):
        save(figure, *args, **kwargs)
        for text in figure.findobj(matplotlib.text.Text):
            texts.append(text._preprocess_math(text.get_text())[0])

    monkeypatch.setattr(matplotlib.figure.Figure, 'savefig', savefig)
    return texts


def test_a_name_is_drawn_as_it_is(tmp_path, drawn, capsys):
    """In titles, over images, at the axes and beside bars."""
    pictures.contact_sheet(IMAGES, NAMES, str(tmp_path / 'augmented.png'))
    pictures.draw_samples([(NAMES[0], IMAGES, NAMES)], str(tmp_path / 'samples.png'), title=NAMES[1])
    pictures.draw_confusion(np.eye(len(NAMES), dtype=int), NAMES, str(tmp_path / 'confusion.png'), title=NAMES[0])
    assert len(list(tmp_path.iterdir())) == 3
    assert capsys.readouterr().err == ''
    for name in ('$1_$x', '$100_$200', 'price $1_$2', r'a\$b$', r'caf\udce9', '猫', '_^{', '%s'):
        assert drawn.count(name) >= 3, name


def test_curves_have_the_title_as_it_is(tmp_path, drawn):
    (tmp_path / 'metrics.jsonl').write_text(
        '{"step": 1, "split": "train", "loss": 1.0}\nnot JSON\n{"step": 2, "split": "train", "loss": 0.5}\n'
    )
    pictures.draw_curves(str(tmp_path / 'metrics.jsonl'), str(tmp_path / 'curves.png'), '$a_$b')
    assert '$a_$b' in drawn and (tmp_path / 'curves.png').exists()  # and the damaged line is left out


def test_top_5_of_a_file_with_such_a_name(tmp_path, drawn):
    import PIL.Image

    path = os.path.join(str(tmp_path), b'caf\xe9 $1_$2.png'.decode(errors='surrogateescape'))
    PIL.Image.fromarray(IMAGES[0]).save(path)
    top = [{'class': 0, 'name': '$1_$x', 'probability': 1.0}]
    predict.draw([{'image': path, 'step': 1, 'top': top}], str(tmp_path / 'top5.png'))
    assert r'caf\udce9 $1_$2.png' in drawn and '$1_$x  100.0%' in drawn


def test_a_picture_that_cannot_be_written_is_named_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(matplotlib.figure.Figure, 'savefig', full)
    (tmp_path / 'metrics.jsonl').write_text(json.dumps({'step': 1, 'split': 'eval', 'loss': 1.0}) + '\n')
    pictures.draw_curves(str(tmp_path / 'metrics.jsonl'), str(tmp_path / 'curves.png'))
    pictures.draw_confusion(np.eye(2, dtype=int), ['a', 'b'], str(tmp_path / 'confusion.png'))
    first, second = capsys.readouterr().err.splitlines()
    assert (
        first
        == f'Warning: {tmp_path}/curves.png cannot be drawn (OSError: [Errno 28] No space left on device); the run goes on without it.'
    )
    assert f'{tmp_path}/confusion.png cannot be drawn' in second
