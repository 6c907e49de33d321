#!/usr/bin/env bash
# One training run on a Cloud TPU VM or pod slice, with gcloud alone:
#
#     launch/tpu_vm.sh create                     asks for the slice (a queued resource) and waits until it is there
#     launch/tpu_vm.sh setup                      copies this repository to every host and installs it
#     launch/tpu_vm.sh run --config=configs/b7.py --workdir=/mnt/runs/b7      starts main.py on every host, detached
#     launch/tpu_vm.sh logs [HOST]                follows a host's log (0)
#     launch/tpu_vm.sh status                     state of the slice, and each host's last line
#     launch/tpu_vm.sh keep --config=... --workdir=...    create, setup and run again and again, through preemptions, until it is done
#     launch/tpu_vm.sh delete                     gives everything back; the meter stops here
#
# Knobs, from the environment: NAME (efficientnet) ZONE (us-west4-a) TYPE (v5litepod-8) VERSION of the runtime (v2-alpha-tpuv5-lite)
# SPOT=1 for spot capacity, QUEUED=0 to create at once or fail, RESERVED=1 for a reservation, PROJECT (gcloud's own), EXTRA for
# further words of the create command, NFS=ADDRESS:/SHARE that setup mounts at /mnt/runs on every host, POLL seconds between looks
# (30). DRY_RUN=1 prints the gcloud commands and runs none.
#
# A host starts main.py again while it ends with neither 0 (done) nor 1 (a person must look); see until_done.sh. The run goes on from
# its newest checkpoint, so --workdir must be on storage that all hosts share and that outlives them.
set -euo pipefail

NAME=${NAME:-efficientnet}
ZONE=${ZONE:-us-west4-a}
TYPE=${TYPE:-v5litepod-8}
VERSION=${VERSION:-v2-alpha-tpuv5-lite}
POLL=${POLL:-30}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
self=$root/launch/tpu_vm.sh

usage() { sed -n '2,19s/^# \{0,1\}//p' "$0"; }

fail() {
    echo "$*" >&2
    exit 1
}

# gcloud compute tpus WORDS in the chosen project and zone.
tpus() {
    local command=(gcloud compute tpus "$@" "--zone=$ZONE")
    [[ -z ${PROJECT:-} ]] || command+=("--project=$PROJECT")
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        printf '%q ' "${command[@]}"
        echo
    else
        "${command[@]}"
    fi
}

# Runs a command line on every host (or on the one of --worker=N).
on_hosts() {
    local worker=$1 line=$2
    tpus tpu-vm ssh "$NAME" "--worker=$worker" "--command=$line"
}

state_of() {
    if [[ ${QUEUED:-1} == 1 ]]; then
        tpus queued-resources describe "$NAME" '--format=value(state.state)'
    else
        tpus tpu-vm describe "$NAME" '--format=value(state)'
    fi
}

create() {
    local extra=()
    [[ ${SPOT:-0} != 1 ]] || extra+=(--spot)
    [[ ${RESERVED:-0} != 1 ]] || extra+=(--reserved)
    # shellcheck disable=SC2206 # EXTRA is words
    extra+=(${EXTRA:-})
    if [[ ${QUEUED:-1} == 1 ]]; then
        tpus queued-resources create "$NAME" "--node-id=$NAME" "--accelerator-type=$TYPE" "--runtime-version=$VERSION" "${extra[@]}"
        wait_until_there
    else
        tpus tpu-vm create "$NAME" "--accelerator-type=$TYPE" "--version=$VERSION" "${extra[@]}"
    fi
}

wait_until_there() {
    [[ ${DRY_RUN:-0} != 1 ]] || return 0
    local state
    while true; do
        state=$(state_of)
        case $state in
            ACTIVE) return 0 ;;
            FAILED | SUSPENDING | SUSPENDED) fail "The request for $TYPE in $ZONE is $state; see launch/tpu_vm.sh status, then delete it and try another ZONE or TYPE." ;;
        esac
        echo "$NAME: ${state:-unknown}; looking again in $POLL s" >&2
        sleep "$POLL"
    done
}

setup() {
    local archive
    archive=$(mktemp -d)/efficientnet_jax.tar.gz
    tar -C "$root" -czf "$archive" --exclude=.git --exclude=.venv --exclude=runs --exclude=__pycache__ .
    tpus tpu-vm scp "$archive" "$NAME:efficientnet_jax.tar.gz" --worker=all
    rm -r "$(dirname "$archive")"
    # The TPU runtimes' Ubuntu 22.04 has Python 3.10 as python3; 3.11 is in its archive.
    on_hosts all "set -e; apt='sudo apt-get -qq -o DPkg::Lock::Timeout=600'; \$apt update; \$apt install -y python3.11 python3.11-venv nfs-common
mkdir -p efficientnet_jax; tar -xzf efficientnet_jax.tar.gz -C efficientnet_jax; cd efficientnet_jax
PYTHON=python3.11 FLAVOUR=tpu bash -ec 'source launch/common.sh; set_up'"
    if [[ -n ${NFS:-} ]]; then
        on_hosts all "sudo mkdir -p /mnt/runs && { mountpoint -q /mnt/runs || sudo mount -t nfs $(printf %q "$NFS") /mnt/runs; } && sudo chmod 1777 /mnt/runs"
    fi
}

# The line that starts the loop on a host. A second run command stops the first, which saves where it is.
loop() {
    local quoted
    printf -v quoted '%q ' "$@"
    cat <<LINE
cd ~/efficientnet_jax || exit 1
if [ -f run.pid ]; then kill -TERM -- -\$(cat run.pid) 2>/dev/null; while kill -0 -- -\$(cat run.pid) 2>/dev/null; do sleep 1; done; fi
STATUS=run.status setsid nohup launch/until_done.sh $quoted >> run.log 2>&1 < /dev/null & echo \$! > run.pid
LINE
}

# Fails for arguments that main.py on the hosts could not work with.
check_run() {
    local argument workdir='' config=''
    for argument in "$@"; do
        case $argument in
            --workdir=*) workdir=${argument#*=} ;;
            --config=*) config=${argument#*=} ;;
        esac
    done
    [[ -n $config && -n $workdir ]] || fail 'run needs --config=FILE and --workdir=DIR, as main.py does.'
    [[ $workdir == /* ]] || fail "workdir=$workdir must be an absolute path on storage that all hosts mount, for example /mnt/runs/b7 (NFS=...)."
}

run() {
    check_run "$@"
    on_hosts all "$(loop "$@")"
}

# 1 when main.py ended with 1 on any host, 0 when it ended with 0 on all, else nothing.
ended() {
    local statuses
    statuses=$(on_hosts all 'cat ~/efficientnet_jax/run.status 2>/dev/null || echo running' 2>/dev/null | grep -xE 'running|[0-9]+') || return 0
    if grep -qx 1 <<<"$statuses"; then
        echo 1
    elif ! grep -qvx 0 <<<"$statuses"; then
        echo 0
    fi
}

keep() {
    local started=0 state status
    check_run "$@" # before anything is billed
    if [[ ${DRY_RUN:-0} == 1 ]]; then # one round, as if the slice came at once
        bash "$self" create && bash "$self" setup && bash "$self" run "$@"
        return
    fi
    while true; do
        state=$(state_of 2>/dev/null || true)
        case $state in
            ACTIVE | READY)
                # As commands of their own, so that each stops at its first error; a preemption in between is looked at again.
                if ((started == 0)) && bash "$self" setup && bash "$self" run "$@"; then
                    started=1
                fi
                status=$( ((started == 0)) || ended)
                if [[ -n $status ]]; then
                    echo "$NAME: main.py ended with $status" >&2
                    return "$status"
                fi
                sleep "$POLL"
                ;;
            '' | FAILED | SUSPENDING | SUSPENDED | PREEMPTED | TERMINATED)
                started=0
                if [[ -n $state ]]; then
                    echo "$NAME: $state; asking for a new one" >&2
                    bash "$self" delete
                fi
                bash "$self" create
                ;;
            *)
                echo "$NAME: $state; looking again in $POLL s" >&2
                sleep "$POLL"
                ;;
        esac
    done
}

delete() {
    if [[ ${QUEUED:-1} == 1 ]]; then
        tpus queued-resources delete "$NAME" --force --quiet
    else
        tpus tpu-vm delete "$NAME" --quiet
    fi
}

verb=${1:-}
shift || true
[[ ${DRY_RUN:-0} == 1 || -z $verb ]] || command -v gcloud >/dev/null || fail 'gcloud is not there; install the Google Cloud CLI: https://cloud.google.com/sdk/docs/install'
case $verb in
    create) create ;;
    setup) setup ;;
    run) run "$@" ;;
    logs) on_hosts "${1:-0}" 'tail -n 100 -F ~/efficientnet_jax/run.log' ;;
    status)
        state_of
        # shellcheck disable=SC2016 # expanded on the host
        on_hosts all 'cd ~/efficientnet_jax 2>/dev/null && echo "$(hostname): $(cat run.status 2>/dev/null || echo running): $(tail -n 1 run.log)"'
        ;;
    keep) keep "$@" ;;
    delete) delete ;;
    *)
        usage
        exit 2
        ;;
esac
