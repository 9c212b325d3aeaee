#!/usr/bin/env bash
# Train all runs below a folder as one Slurm job array, LIMIT of them at a time:
#   ./batch_run.sh DIR [LIMIT] [sbatch options...]
# PYTHON names the interpreter; by default that of .venv, or else python3. See docs/clusters.md.
set -euo pipefail

flags=()
while [[ ${1:-} == --resume || ${1:-} == --test ]]; do
  flags+=("$1")
  shift
done
if [[ $# -eq 0 || $1 == -* ]]; then
  echo "usage: $(basename "$0") DIR [LIMIT] [sbatch options...]" >&2
  exit 2
fi
folder=$1
shift
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
  flags+=(--limit "$1")
  shift
fi
python="$(dirname "${BASH_SOURCE[0]}")/.venv/bin/python"
[[ -x $python ]] || python=python3
exec "${PYTHON:-$python}" -m lconvnet submit ${flags[@]+"${flags[@]}"} "$folder" -- "$@"
