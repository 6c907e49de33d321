"""Damaged weight files of every format, loaded into a tiny network as predict and --config.init_from load them."""

import io
import pathlib
import random
import shutil
import zipfile

from benchmarks.fuzzing import _weight_seeds

SECONDS = 10
MEMORY_BYTES = 1 << 30
SEEDS = {}  # {name: bytes of an intact file, or {file's name: bytes} of a folder}, made by prepare
EDGES = (0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_TINY = []


def prepare(folder: str) -> None:
    """Makes the seeds, and loads each: all of them must be accepted."""
    from efficientnet_jax import architectures
    from efficientnet_jax.architectures import Architecture, Stage

    tiny = Architecture('efficientnet_tiny', (Stage(1, 3, 1, 1, 8), Stage(1, 3, 2, 2, 8)), stem=8, head=8)
    architectures.ARCHITECTURES.clear()  # the diff of a mismatch looks through all of them, a second each time
    architectures.ARCHITECTURES['efficientnet_tiny'] = tiny
    _TINY[:] = [tiny]
    SEEDS.update(_weight_seeds.seeds(tiny, folder))
    for seed in sorted(SEEDS):
        run(_written(folder, seed, SEEDS[seed]))


def make(folder: str, canary: str, rng: random.Random) -> tuple[str, str]:
    """One damaged file or folder in `folder`; the group is its format."""
    seed = rng.choice(sorted(SEEDS))
    files = SEEDS[seed]
    if seed.startswith('h5') and rng.random() < 0.1:
        return 'h5', _written(folder, seed, _reaching(files, canary, rng))
    if isinstance(files, dict):
        files = {name: bytes(data) for name, data in files.items()}
        name = rng.choice(sorted(files))
        mutate = _changed_entries if name.endswith('.index') and rng.random() < 0.7 else _mutated
        files[name] = mutate(files[name], rng)
        if rng.random() < 0.2:
            files['checkpoint'] = f'model_checkpoint_path: "{rng.choice((canary, "../canary", "/etc/passwd"))}"\n'.encode()
        return seed.split()[0], _written(folder, seed, files)
    if files[:2] == b'PK' and rng.random() < 0.7:
        return seed.split()[0], _written(folder, seed, _zipped_again(files, rng))
    return seed.split()[0], _written(folder, seed, _mutated(files, rng))


def run(path: str) -> None:
    """Reads, matches and converts."""
    from efficientnet_jax import weights

    weights.load(path, _TINY[0], padding='same')


def fine(error: Exception, path: str) -> bool:
    """A UserError or StorageError of one line that names the file."""
    from efficientnet_jax.errors import StorageError, UserError

    return isinstance(error, UserError | StorageError) and path in str(error) and str(error).isprintable()


def _written(folder, seed, content):
    path = pathlib.Path(folder, 'case')
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if isinstance(content, dict):
        path.mkdir()
        for name, data in content.items():
            (path / name).write_bytes(data)
        return str(path)
    path.write_bytes(content)
    return str(path)


def _mutated(data: bytes, rng: random.Random) -> bytes:
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        rng.choice(_MUTATIONS)(data, rng)
    return bytes(data)


def _zipped_again(data: bytes, rng: random.Random) -> bytes:
    """Mutates one member and writes the zip anew, so that its checksums are right; sometimes with a member that inflates a thousandfold."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as new:
        chosen = rng.choice([name for name in old.namelist() if name.endswith(('pkl', 'npy', 'h5'))])
        bomb = rng.random() < 0.02
        for name in old.namelist():
            content = old.read(name)
            if name == chosen:
                content = content + bytes(300 << 20) if bomb else _mutated(content, rng)
            new.writestr(name, content, compresslevel=1)
    return out.getvalue()


def _changed_entries(index: bytes, rng: random.Random) -> bytes:
    """The index of a TensorFlow checkpoint with bytes changed among its entries and the checksum of their block right again."""
    from efficientnet_jax.weights import bundles

    at = bundles.handle(index[-bundles.FOOTER_BYTES :], 0)[2]
    offset, size, _ = bundles.handle(index[-bundles.FOOTER_BYTES :], at)  # of the directory, whose one entry is the one block of entries
    end = bundles.handle(bundles.block(index, offset, size)[0][1], 0)[1]
    entries = bytearray(index[:end])
    for _ in range(rng.choice((1, 1, 2, 6))):
        entries[rng.randrange(end)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    entries.append(0)  # not compressed
    return bytes(entries) + bundles.masked_crc32c(bytes(entries)).to_bytes(4, 'little') + index[end + 5 :]


def _reaching(data: bytes, canary: str, rng: random.Random) -> bytes:
    """An HDF5 file in which one array is somewhere else: external storage, a link, a virtual data set, or the group above it."""
    import h5py

    file = io.BytesIO(data)
    with h5py.File(file, 'r+') as h5:
        found = []
        h5.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        name = rng.choice(found)
        shape, parent, leaf = h5[name].shape, h5[name].parent, name.split('/')[-1]
        del h5[name]
        kind = rng.randrange(5)
        if kind == 0:
            parent.create_dataset(leaf, shape, 'f4', external=[(canary, 0, h5py.h5f.UNLIMITED)])
        elif kind == 1:
            parent[leaf] = h5py.ExternalLink(canary, '/x')
        elif kind == 2:
            parent[leaf] = h5py.SoftLink('/')
        elif kind == 3:
            parent[leaf] = h5[rng.choice(('/', parent.name))]
        else:
            layout = h5py.VirtualLayout(shape, 'f4')
            layout[...] = h5py.VirtualSource(canary, 'x', shape)
            parent.create_virtual_dataset(leaf, layout)
    return file.getvalue()


def _flip(data: bytearray, rng: random.Random) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _edge(data: bytearray, rng: random.Random) -> None:
    """An extreme number in place of another, nearer the header more often."""
    width = rng.choice((1, 2, 4, 8))
    at = rng.randrange(1 + (len(data) if rng.random() < 0.5 else min(len(data), 200)))
    data[at : at + width] = (rng.choice(EDGES) & (1 << 8 * width) - 1).to_bytes(width, 'little')


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _drop(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.choice((1, 2, 4, 12, 64))]


def _repeat(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = data[at : at + rng.choice((1, 4, 16, 128, 1024))] * rng.choice((1, 2, 20, 200))


def _splice(data: bytearray, rng: random.Random) -> None:
    """The end of another file."""
    other = SEEDS[rng.choice(sorted(name for name in SEEDS if not isinstance(SEEDS[name], dict)))]
    at, start = rng.randrange(len(data) + 1), rng.randrange(len(other))
    data[at:] = other[start:]


def _digits(data: bytearray, rng: random.Random) -> None:
    """Another number or name in a text: JSON of .safetensors, headers of .npy, the file `checkpoint`."""
    at = [i for i, byte in enumerate(data[:20000]) if 48 <= byte <= 57]
    if at:
        i = rng.choice(at)
        words = (b'-1', b'9' * 9, b'9' * 19, b'9' * 400, b'1e999', b'null', b'"x"', b'[' * 20000, b'{}', b'NaN', b'0.5', b'\n', b"b'")
        data[i : i + 1] = rng.choice(words)


def _noise(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at : at + 8] = rng.randbytes(8)


_MUTATIONS = (_flip, _flip, _edge, _edge, _cut, _drop, _repeat, _splice, _noise, _digits, _digits)
