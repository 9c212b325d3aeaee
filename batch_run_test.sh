#!/usr/bin/env bash
# Evaluate all runs below a folder as one Slurm job array, LIMIT of them at a time:
#   ./batch_run_test.sh DIR [LIMIT] [sbatch options...]
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/batch_run.sh" --test "$@"
