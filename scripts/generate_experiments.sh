#!/usr/bin/env bash
# ./generate_experiments.sh DIR [--set KEY=VALUE ...]: a run folder for every combination of the template.yaml in DIR.
set -euo pipefail
python="$(dirname "$(readlink -f "$0")")/../.venv/bin/python"
[[ -x $python ]] || python=python3
exec "${PYTHON:-$python}" -m lconvnet generate "$@"
