#!/usr/bin/env bash
# Trains on this machine, whatever it has: makes .venv, installs, and runs main.py with the arguments given.
#
#     ./launch/local.sh                                      the embedded digits, minutes on a laptop
#     ./launch/local.sh --config=configs/b0.py --workdir=runs/b0
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
set_up
if (($# == 0)); then
    set -- --config=configs/digits.py --workdir=runs/digits
fi
exec .venv/bin/python main.py "$@"
