"""The batch script of an array of runs: the part of `lconvnet.experiments.slurm` that runs on the cluster, in bash.

A notice (SIGUSR1 or SIGTERM) may reach the script, the command that it runs as a step, or both. How srun behaves
decides how the script passes it on (Slurm 22.05):

* it loses a signal in its first 50 ms, so the notice is repeated until the step has ended;
* at a SIGTERM it kills the step, so it gets SIGUSR1 instead;
* it passes on the exit code of the command, and 128 + N where signal N ended it.

The exit code and the state of the job then decide whether the task is queued again.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

NOTICE = 120
BEGIN = """\
#!/usr/bin/env bash
#SBATCH --array={array}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@{notice}
stopping='' told='' received='' step=''
trap 'stopping=1 received=1; [[ -z $step ]] || tell' USR1 TERM
"""
WORK = """\
set -uo pipefail
# Not SLURM_JOB_ID: for one of the tasks it is the id of the whole array.
task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
run=${runs[SLURM_ARRAY_TASK_ID]}
resume=()
((${SLURM_RESTART_COUNT:-0} == 0)) || resume=(--resume)
if [[ ${SLURM_CPUS_PER_TASK:-} ]]; then
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}
fi

# Pass the notice on to the step, until it has ended.
tell() {
  [[ -z $told ]] || return
  told=1
  while kill -USR1 "$step"; do sleep 5; done 2>/dev/null &
}

# Run one command as a step of the job and return its exit code.
work() {
  [[ -z $stopping ]] || return 3
  local code
  echo "task $task, start $((${SLURM_RESTART_COUNT:-0} + 1)): $*"
  srun "$@" &
  step=$!
  [[ -z $stopping ]] || tell
  # A trap ends 'wait' early; the next one has the true code.
  while received='' && wait "$step"; code=$?; [[ $received ]]; do :; done
  step=''
  return "$code"
}

# Queue the task again, unless somebody else did or it was cancelled.
requeue() {
  case $(squeue --noheader --jobs="$task" --format='%T %r') in
    RUNNING* | *TimeLimit) scontrol requeue "$task" ;;
  esac
}

"""
END = """\
code=$?
case $code in
  3 | 130 | 138 | 143) requeue ;;             # saved, or stopped by SIGINT, SIGUSR1, SIGTERM before it could
  137 | 255) [[ -z $stopping ]] || requeue ;; # killed after a notice; bash lost the code to a trap
esac
exit "$code"
"""


def script(runs: Sequence[Path], *, resume: bool, test: bool, limit: int | None, notice: int = NOTICE) -> str:
    """Return the batch script of an array with one task for each run.

    >>> text = script([Path("/runs/my run")], resume=False, test=True, limit=2)
    >>> print(text.splitlines()[1], text.splitlines()[8], sep="; ")
    #SBATCH --array=0-0%2; '/runs/my run'
    """
    command = f"work {shlex.quote(sys.executable)} -m lconvnet"
    going_on = "--resume" if resume else '${resume[@]+"${resume[@]}"}'
    train = [f'{command} train "$run/cfg.yaml" {going_on}'] if resume or not test else []
    evaluate = [f'{command} evaluate "$run"'] if test else []
    array = f"0-{len(runs) - 1}" + (f"%{limit}" if limit else "")
    listed = "\n".join(["runs=(", *(shlex.quote(str(run)) for run in runs), ")\n"])
    return BEGIN.format(array=array, notice=notice) + listed + WORK + " &&\n  ".join(train + evaluate) + "\n" + END
