# shellcheck shell=bash
# Sourced by local.sh and test.sh: makes .venv in the repository's root and installs what requirements.txt names, once per change of it.
# PYTHON chooses the interpreter (3.11 or newer); FLAVOUR=tpu|gpu|cpu overrides what is found.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1

flavour() {
    if compgen -G '/dev/accel*' >/dev/null || compgen -G '/dev/vfio/[0-9]*' >/dev/null; then
        echo tpu
    elif command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
        echo gpu
    else
        echo cpu
    fi
}

set_up() {
    local kind=${FLAVOUR:-$(flavour)} python=${PYTHON:-python3} stamp version there=
    local of='import sys; print("%d.%d" % sys.version_info[:2])'
    [[ ! -x .venv/bin/python ]] || there=$(.venv/bin/python -c "$of")
    [[ -n ${PYTHON:-} || -z $there ]] || python=.venv/bin/python # what is there is as good as any, unless one was asked for
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "$python is $("$python" --version); efficientnet_jax needs Python 3.11 or newer: PYTHON=python3.12 $0" >&2
        exit 1
    }
    version=$("$python" -c "$of")
    stamp="$kind $version $(cksum <requirements.txt)"
    if [[ ! -f .venv/installed || $(<.venv/installed) != "$stamp" ]]; then
        echo "Installing for $kind into $root/.venv (a few minutes, once)" >&2
        [[ $there == "$version" ]] || "$python" -m venv --clear .venv
        # A TPU's and a CPU's build are the same one; a GPU needs its plug-in instead of libtpu.
        if [[ $kind == gpu ]]; then
            sed 's/^jax\[tpu\]/jax[cuda13]/' requirements.txt >.venv/requirements.txt
        else
            cp requirements.txt .venv/requirements.txt
        fi
        .venv/bin/python -m pip install --quiet --upgrade -r .venv/requirements.txt
        echo "$stamp" >.venv/installed
    fi
    if [[ $kind == cpu ]]; then
        export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} # else JAX looks for a TPU first, 3 s and a warning
    fi
}
