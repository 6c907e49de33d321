#!/usr/bin/env bash
# Runs main.py with the arguments given, again and again while it ends with neither 0 (done) nor 1 (a person must look): 75 is a
# preemption or a lost host, and above 128 is a signal. Each start goes on from the newest checkpoint.
#
#     launch/until_done.sh --config=configs/b7.py --workdir=/mnt/runs/b7
#
# TERM or Ctrl-C is passed on, and ends the loop when main.py has saved. WAIT: seconds before a new start (10). STATUS: a file for the
# last status, removed while main.py runs.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$([[ -x $root/.venv/bin/python ]] && echo "$root/.venv/bin/python" || echo python3)}
stopping=0
child=
# shellcheck disable=SC2329 # called by the trap
stop() {
    stopping=1
    [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true
}
trap stop TERM INT

while true; do
    [[ -z ${STATUS:-} ]] || rm -f "$STATUS"
    "$python" "${MAIN:-$root/main.py}" "$@" &
    child=$!
    while true; do # a signal ends wait before the child has ended
        wait "$child"
        status=$?
        kill -0 "$child" 2>/dev/null || break
    done
    child=
    [[ -z ${STATUS:-} ]] || echo "$status" >"$STATUS"
    echo "main.py ended with $status" >&2
    if ((status == 0 || status == 1 || stopping)); then
        exit "$status"
    fi
    sleep "${WAIT:-10}" &
    wait $! || true
    if ((stopping)); then
        exit "$status"
    fi
done
