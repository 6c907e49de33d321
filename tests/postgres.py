"""A real PostgreSQL for tests, where Debian's package is installed: its own folder, a free port, gone afterwards."""

import contextlib
import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time


def missing() -> str:
    """Why no server can be started here; '' where one can."""
    if find() is None:
        return 'PostgreSQL is not installed (apt-get install postgresql)'
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return 'psycopg is not installed (pip install "psycopg[binary]")'
    return ''


def find() -> str | None:
    """The folder of initdb and postgres; Debian keeps it off the PATH."""
    on_path = shutil.which('initdb')
    folders = [*sorted(glob.glob('/usr/lib/postgresql/*/bin'), reverse=True), *([os.path.dirname(on_path)] if on_path else [])]
    return next((folder for folder in folders if os.path.exists(os.path.join(folder, 'postgres'))), None)


@contextlib.contextmanager
def server():
    """postgresql://... of a database that is there as long as the context. PostgreSQL refuses to run as root: then it runs as nobody."""
    binaries, port = find(), free_port()
    user = {'user': 'nobody', 'extra_groups': []} if os.getuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix='pg') as folder:
        if user:
            os.chown(folder, pwd.getpwnam('nobody').pw_uid, -1)
        data = os.path.join(folder, 'data')
        initdb = [f'{binaries}/initdb', '-D', data, '-U', 'tester', '--auth=trust', '--no-sync', '--encoding=UTF8']
        subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **user)
        options = ['-c', 'fsync=off', '-c', 'listen_addresses=127.0.0.1', '-c', f'unix_socket_directories={folder}']
        with open(os.path.join(folder, 'log'), 'wb') as log:
            process = subprocess.Popen(
                [f'{binaries}/postgres', '-D', data, '-p', str(port), *options], stdout=log, stderr=log, cwd=folder, **user
            )
        try:
            ready = [f'{binaries}/pg_isready', '-q', '-h', '127.0.0.1', '-p', str(port), '-t', '1']
            for _ in range(300):
                if subprocess.run(ready).returncode == 0:
                    break
                if process.poll() is not None:
                    with open(os.path.join(folder, 'log')) as file:
                        raise RuntimeError(file.read())
                time.sleep(0.1)
            yield f'postgresql://tester@127.0.0.1:{port}/postgres'
        finally:
            process.send_signal(signal.SIGINT)  # a 'fast' shutdown cuts off who is still connected
            process.wait(30)


def new_database(url: str, name: str) -> str:
    """postgresql://... of an empty database on the server of url."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE {name}')
    return f'{url.rpartition("/")[0]}/{name}'


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]
