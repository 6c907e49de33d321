#!/usr/bin/env bash
# Lint, types of the public surface and tests in the same environment as local.sh. Arguments go to pytest: ./launch/test.sh -m slow
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
set_up
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest "$@"
