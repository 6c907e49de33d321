#!/usr/bin/env bash
# Runs N processes of one training run on this machine, through the same main.py as on a pod:
#
#     launch/local_cluster.sh 2 --config=configs/digits.py --workdir=runs/cluster
#
# Knobs, from the environment: DEVICES, CPU devices of each process (1); PORT of process 0 (a free one); LOGS, a folder for one log a
# process (else only process 0 is shown, and all where they fail). Ends with the status of the first process that failed, and stops
# the others. TERM or Ctrl-C is passed on: the run saves and ends with 75.
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
fi
processes=$1
shift
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$([[ -x $root/.venv/bin/python ]] && echo "$root/.venv/bin/python" || echo python3)}
port=${PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
logs=${LOGS:-$(mktemp -d)}
mkdir -p "$logs"
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-1}"
export PYTHONUNBUFFERED=1

pids=()
# shellcheck disable=SC2329 # called by the trap
stop() { kill -TERM "${pids[@]}" 2>/dev/null || true; }
trap stop TERM INT

for ((i = 0; i < processes; i++)); do
    flags=()
    if ((processes > 1)); then
        flags=("--coordinator=127.0.0.1:$port" "--processes=$processes" "--process_id=$i")
    fi
    # A job of its own, so that Ctrl-C reaches it once, as TERM.
    setsid "$python" "$root/main.py" "$@" "${flags[@]}" >"$logs/$i.log" 2>&1 &
    pids+=($!)
done
touch "$logs/0.log" # the child may not have come to it yet
tail -n +1 -f --pid="${pids[0]}" "$logs/0.log" &
shown=$!

status=0
left=("${pids[@]}")
while ((${#left[@]})); do
    ended=0
    wait -n -p ended "${left[@]}" && code=0 || code=$?
    if [[ -z ${ended:-} || $ended == 0 ]]; then
        continue # a signal came in between
    fi
    rest=()
    for pid in "${left[@]}"; do
        [[ $pid == "$ended" ]] || rest+=("$pid")
    done
    left=("${rest[@]}")
    if ((code != 0 && status == 0)); then
        status=$code
    fi
done
wait "$shown" || true
if ((status != 0)); then
    for ((i = 1; i < processes; i++)); do
        echo "--- process $i (whole log: $logs/$i.log)" >&2
        tail -n 5 "$logs/$i.log" >&2
    done
fi
exit "$status"
