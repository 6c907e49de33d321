"""The command line as it is typed: what is refused, each in one line with a way out, and where the config comes from."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import main as main_file
from configs import default, digits
from efficientnet_jax import __main__ as module_file
from efficientnet_jax.cli import command, configs, flags
from efficientnet_jax.errors import StorageError, UserError
from efficientnet_jax.runs import options

ROOT = pathlib.Path(__file__).parents[2]
RUN = ['--config=configs/digits.py', '--workdir=runs/x']


@pytest.fixture(autouse=True)
def in_the_clone(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv('EFFICIENTNET_JAX_TRACEBACK', raising=False)


def config_of(*words):
    """The config that a command line gives, by its own parser."""
    said = flags.parse(list(words), '', list(command.MODES))
    return configs.config_of(said.flags.config, said.flags.workdir, said.overrides)


def option_of(config, name):
    for part in name.split('.'):
        config = config[part]
    return config


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--config', 'nosuch.py', '--workdir=x'], '--config=nosuch.py is not a file. Configs: configs/NAME.py with NAME of b0, b1, '),
        (['--config=b0', '--workdir=x'], '--config=b0 is not a file. Did you mean --config=configs/b0.py? Configs: '),
        (['--config=configs', '--workdir=x'], '--config=configs is not a file. Configs: '),
        (['--config=configs/nope.py:a,b', '--workdir=x'], '--config=configs/nope.py:a,b is not a file. '),
        (['--config=README.md', '--workdir=x'], '--config=README.md is no Python file. '),
        (['--config=main.py', '--workdir=x'], '--config=main.py has no function get_config(); see configs/b0.py.'),
        (['--config=configs/b0.py:foo', '--workdir=x'], 'configs/b0.py takes nothing after the colon; write --config=configs/b0.py.'),
        (['--config=configs/transfer.py:foo,lite0', '--workdir=x'], 'transfer.py:foo,lite0 must be DATA,MODEL with DATA of cifar10, '),
        (
            ['--config=configs/study.py:table2,foo', '--workdir=x'],
            'study.py:table2,foo must be KIND or KIND,RECIPE with RECIPE of imagenet',
        ),
        (['--config=configs/study.py:table9', '--workdir=x'], "study.kind='table9' must be one of table2, "),
        (['--config=configs/search.py:luck', '--workdir=x'], 'search.py:luck must be KIND or KIND,RECIPE with KIND of random, '),
        (['--workdir=/nowhere'], '--config=FILE is missing, and workdir=/nowhere holds no run whose config could be taken. Configs: '),
        (['--mode=predict', 'a.jpg'], '--config=FILE is missing, and no --workdir is given whose config could be taken. Configs: '),
        (['--config=configs/b0.py'], 'mode=train needs --workdir=DIR; only predict with --config.init_from goes without.'),
        ([*RUN, 'a.jpg'], "mode=train takes flags alone, not 'a.jpg'; image files are for --mode=predict."),
        ([*RUN, '--', '--a.jpg'], "mode=train takes flags alone, not '--a.jpg'; image files are for --mode=predict."),
        ([*RUN, '--json'], '--json is for --mode=predict, not for mode=train; leave it out.'),
        ([*RUN, '--mode=evaluate', '--picture=a.png'], '--picture is for --mode=predict, not for mode=evaluate; leave it out.'),
        ([*RUN, '--mode=export', '--features'], '--features is for --mode=predict, not for mode=export; leave it out.'),
        ([*RUN, '--mode=study', '--output=a.npz'], '--output is for --mode=predict, not for mode=study; leave it out.'),
        ([*RUN, '--mode=predict', '--output=a.npz', 'a.jpg'], '--output=a.npz is where --features go; give both, or neither.'),
        ([*RUN, '--mode=fly'], "Argument --mode: invalid choice: 'fly' (choose from "),
        ([*RUN, '--mode'], 'Argument --mode: expected one argument. All flags: --help.'),
        ([*RUN, '--processes=0'], "Argument --processes: '0' must be a whole number of at least 1. All flags: --help."),
        ([*RUN, '--lost_after_seconds=soon'], "'soon' must be a whole number of at least 1. All flags: --help."),
        ([*RUN, '--wrkdir=x'], 'There is no flag --wrkdir. Did you mean --workdir? All flags: --help.'),
        ([*RUN, '--batch_size=3'], 'There is no flag --batch_size; options of the config are written --config.batch_size=VALUE.'),
        ([*RUN, '--config.steps'], '--config.steps needs a value: --config.steps=VALUE.'),
        ([*RUN, '--config.batchsize=3'], "--config.batchsize=3: there is no option 'batchsize'. Did you mean batch_size"),
        ([*RUN, '--config.augment=3'], "there is no option 'augment'. It is a group: augment.crop, augment.area, "),
        ([*RUN, '--config.=3'], "--config.=3: there is no option ''. All options: configs/default.py."),
        ([*RUN, '--config.steps=many'], "steps='many' must be a whole number, at least 0, or None."),
        ([*RUN, '--config.steps=1e3'], "steps='1e3' must be a whole number, at least 0, or None."),
        ([*RUN, f'--config.steps={"9" * 5000}'], "steps='999"),
        ([*RUN, '--config.cache=maybe'], "cache='maybe' must be True or False."),
        ([*RUN, '--config.batch_size=None'], 'batch_size=None must be a whole number, at least 1 image.'),
        ([*RUN, '--config.model=None'], "model='None' is not an architecture; near names: "),
        ([*RUN, '--config.model=b3'], "model='b3' is not an architecture; near names: efficientnet_b3"),
        ([*RUN, '--config.dataset='], "dataset='' must be text on one line."),
        ([*RUN, '--config.augment.area=(0.5'], "augment.area=('(0.5',) must be two increasing numbers above 0 and at most 1."),
        ([*RUN, '--config.stages=((1, 3, 1, 1, 16, 5.0),)'], 'stages: se=5.0 in (1, 3, 1, 1, 16, 5.0) must be between 0 and 1, or None.'),
    ],
)
def test_what_cannot_be_gets_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    assert message in ended.value.code and '\n' not in ended.value.code  # text, which is printed, and the status is 1
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize(
    ('name', 'meant'),
    [
        ('lr', 'lr_per_256'),
        ('learning_rate', 'lr_per_256'),
        ('drop_path_rate', 'drop_path'),
        ('drop_connect_rate', 'drop_path'),
        ('drop-rate', 'dropout'),
        ('model_ema', 'ema_decay'),
        ('aa', 'augment.policy'),
        ('reprob', 'augment.erase'),
        ('img_size', 'resolution'),
        ('flip', 'augment.flip'),
        ('augmnt.flip', 'augment.flip'),
        ('mixup_alpha', 'augment.mixup'),
        ('num_epochs', 'epochs'),
        ('wieght_decay', 'weight_decay'),
        ('Batch_Size', 'batch_size'),
    ],
)
def test_names_of_other_projects_lead_to_the_option_here(name, meant):
    with pytest.raises(UserError, match=rf"there is no option '{name}'\. Did you mean {meant}(\?| or )"):
        config_of(*RUN, f'--config.{name}=0.1')


def test_hints_name_options_that_are_there():
    from efficientnet_jax.cli import hints

    assert set(hints.ELSEWHERE) <= set(options.OPTIONS)
    assert len(hints.MEANT) == sum(len(names) for names in hints.ELSEWHERE.values())


@pytest.mark.parametrize('name', [name for name, option in options.OPTIONS.items() if option.optional])
def test_none_on_the_command_line_turns_an_option_off(name):
    assert option_of(config_of('--config=configs/default.py', '--workdir=x', f'--config.{name}=None'), name) is None


@pytest.mark.parametrize(
    ('name', 'text', 'value'),
    [
        ('steps', '20', 20),
        ('epochs', '3', 3.0),
        ('search.w', '-0.5', -0.5),
        ('cache', 'true', True),
        ('cache', 'False', False),
        ('remat', 'blocks', 'blocks'),
        ('augment.area', '(0.5, 1)', (0.5, 1)),
        ('export.formats', 'tflite,stablehlo', ('tflite', 'stablehlo')),
        ('export.formats', "('tflite',)", ('tflite',)),
        ('export.formats', 'tflite', ('tflite',)),
        ('stages', '[[1, 3, 1, 1, 16, None]]', ((1, 3, 1, 1, 16, None),)),
        ('init_from', 'a=b.pth', 'a=b.pth'),
    ],
)
def test_values(name, text, value):
    for words in ([f'--config.{name}={text}'], [f'--config.{name}', text]):
        if not isinstance(value, bool) or len(words) == 1:
            found = option_of(config_of(*RUN, *words), name)
            assert found == value and type(found) is type(value)


def test_a_bare_option_of_true_or_false_is_true_and_the_last_word_wins():
    config = config_of(*RUN, '--config.cache', '--config.steps=3', '--config.steps=4')
    assert config.cache is True and config.steps == 4


def test_images_and_flags_in_any_order():
    said = flags.parse(['a.jpg', '--mode=predict', *RUN, '--json', 'b c.jpg', '--', '-d.jpg'], '', list(command.MODES))
    assert said.images == ['a.jpg', 'b c.jpg', '-d.jpg'] and said.flags.json


def leave(folder, config, **changes):
    """WORKDIR/config.json as a run writes it."""
    values = json.loads(config.to_json()) | changes
    (folder / 'config.json').write_text(json.dumps(values))
    return f'--workdir={folder}'


def test_the_config_of_a_run_is_taken_from_its_workdir(tmp_path):
    config = digits.get_config()
    config.steps, config.stages, config.augment.policy = 7, ((1, 3, 1, 1, 16, None),), 'randaugment'
    workdir = leave(tmp_path, config)
    found = config_of(workdir, '--mode=predict', 'a.jpg')
    assert found.to_json() == config.to_json() and found.stages == ((1, 3, 1, 1, 16, None),)
    found = config_of(workdir, '--config.steps=8', '--config.augment.policy=None')
    assert (found.steps, found.augment.policy) == (8, None)
    assert found.is_locked and type(found.get_type('steps')) is type


def test_options_younger_than_a_run_have_their_defaults(tmp_path):
    config = default.get_config()
    values = json.loads(config.to_json())
    del values['max_corrupt'], values['search']
    (tmp_path / 'config.json').write_text(json.dumps(values))
    assert config_of(f'--workdir={tmp_path}').to_json() == config.to_json()


def test_a_run_of_options_that_are_gone_is_refused(tmp_path):
    with pytest.raises(UserError, match=r'The run in workdir=.* has options that this version does not know: knob\. Give --config=FILE'):
        config_of(leave(tmp_path, default.get_config(), knob=3))
    with pytest.raises(UserError, match=r"steps='x' must be a whole number"):
        config_of(leave(tmp_path, default.get_config(), steps='x'))


@pytest.mark.parametrize('text', ['', '{"steps": 3', '[1, 2]', '\0'])
def test_a_damaged_config_of_a_run_is_named(text, tmp_path):
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(StorageError, match=rf'{tmp_path}/config\.json is (cut off or )?damaged \(.*\)\. Give --config=FILE'):
        config_of(f'--workdir={tmp_path}')


def test_a_bug_in_a_config_keeps_its_traceback(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text('def get_config():\n    return undefined\n')
    with pytest.raises(NameError, match='undefined'):
        command.main([f'--config={path}', '--workdir=x'])
    path.write_text('def get_config():\n    return 3\n')
    with pytest.raises(UserError, match=r'get_config\(\) must return a ConfigDict, not int; see configs/b0.py'):
        config_of(f'--config={path}', '--workdir=x')


def test_a_config_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_of('--config=configs/b7.py', '--workdir=x').model == 'efficientnet_b7'


def test_the_traceback_of_a_refusal_can_be_asked_for(monkeypatch):
    monkeypatch.setenv('EFFICIENTNET_JAX_TRACEBACK', '1')
    with pytest.raises(UserError, match='is not a file'):
        command.main(['--config=nosuch.py', '--workdir=x'])


def test_main_is_the_command_of_the_package():
    assert main_file.main is command.main is module_file.main
    assert len((ROOT / 'main.py').read_text().splitlines()) < 60


def run(*words, **options):
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, **options)


@pytest.mark.parametrize('start', [['main.py'], ['-m', 'efficientnet_jax']])
def test_a_refusal_imports_no_jax_and_ends_with_status_1(start):
    code = "import runpy, sys; sys.modules['jax'] = None; sys.argv = ['x', '--config=configs/b0.py', '--workdir=x', '--config.lr=1']; {}"
    how = (
        "runpy.run_path('main.py', run_name='__main__')"
        if start == ['main.py']
        else "runpy.run_module('efficientnet_jax', run_name='__main__')"
    )
    done = run(sys.executable, '-c', code.format(how))
    assert done.returncode == 1
    assert done.stderr == "--config.lr=1: there is no option 'lr'. Did you mean lr_per_256? All options: configs/default.py.\n"


def test_help_says_what_each_mode_leaves():
    text = run(sys.executable, 'main.py', '--help').stdout
    assert all(f'\n  --mode={mode} ' in text for mode in command.MODES) and '--config=configs/' in text and '--lost_after_seconds' in text


def test_a_closed_stderr_is_not_the_next_file_that_is_opened(tmp_path):
    """2>&-: what is said goes nowhere, not into the file that would have number 2."""
    script = (
        'import os, sys\n'
        'from efficientnet_jax.cli import command\n'
        'command._open_standard_streams()\n'
        f'file = open({str(tmp_path / "data")!r}, "w")\n'
        'assert file.fileno() > 2, file.fileno()\n'
        'print("said", file=sys.stderr, flush=True)\n'
        'os.write(2, b"said too")\n'
        'file.close()\n'
    )
    done = subprocess.run(
        ['sh', '-c', f'exec "{sys.executable}" -c "$SCRIPT" 2>&- >&-'], cwd=ROOT, env={**os.environ, 'SCRIPT': script}, check=False
    )
    assert done.returncode == 0 and (tmp_path / 'data').read_text() == ''


def test_a_core_without_the_extras_says_what_to_install(monkeypatch):
    monkeypatch.setattr(command.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install 'efficientnet_jax\[train\]'"):
        command.main(['--help'])


@pytest.mark.parametrize('name', ['models', 'weights', 'counting'])
def test_the_package_gives_its_parts_when_they_are_named(name):
    code = (
        "import sys; sys.modules['jax'] = None\n"  # whoever imports it now fails
        'import efficientnet_jax\n'
        f'assert {name!r} in dir(efficientnet_jax)\n'
        "assert efficientnet_jax.architectures.get('efficientnet_b0') and efficientnet_jax.scaling.scale\n"
        "del sys.modules['jax']\n"
        f'assert efficientnet_jax.{name}.__name__ == "efficientnet_jax.{name}"\n'
    )
    done = run(sys.executable, '-c', code)
    assert done.returncode == 0, done.stderr


def test_a_name_that_the_package_has_not():
    import efficientnet_jax

    with pytest.raises(AttributeError, match="has no attribute 'nosuch'; public: architectures, "):
        efficientnet_jax.nosuch  # noqa: B018
