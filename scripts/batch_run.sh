#!/usr/bin/env bash
# Train all runs below a folder as one Slurm job array, LIMIT of them at a time:
#   ./batch_run.sh DIR [LIMIT] [sbatch options...]
# As batch_run_resume.sh it goes on with what was stopped, as batch_run_test.sh it evaluates, as
# batch_run_resume_test.sh it does both. PYTHON names the interpreter; by default that of .venv, or else python3.
# See docs/clusters.md.
set -euo pipefail

name=$(basename "$0")
flags=()
[[ $name == *_resume* ]] && flags+=(--resume)
[[ $name == *_test* ]] && flags+=(--test)
if [[ $# -eq 0 || $1 == -* ]]; then
  echo "usage: $name DIR [LIMIT] [sbatch options...]" >&2
  exit 2
fi
folder=$1
shift
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
  flags+=(--limit "$1")
  shift
fi
python="$(dirname "$(readlink -f "$0")")/../.venv/bin/python"
[[ -x $python ]] || python=python3
exec "${PYTHON:-$python}" -m lconvnet submit ${flags[@]+"${flags[@]}"} "$folder" -- "$@"
