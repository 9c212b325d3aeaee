"""A family of runs as one Slurm job array: one task per run, which saves and queues again if it is interrupted.

A notice is SIGUSR1 or SIGTERM: sent before the time limit, by a preemption, or by hand with `scancel --signal`. The
command then saves and exits with code 3, its task is requeued, and a requeued task continues with `--resume`. A notice
may reach the batch script, the command that it runs as a step, or both. The script passes it on in a way that suits
srun (Slurm 22.05). srun loses a signal in its first 50 ms, so the notice is repeated until the step has ended. At a
SIGTERM srun kills the step, so the step gets SIGUSR1 instead. srun returns the exit code of the command, or 128 + N if
signal N ended it. This code and the state of the job then decide whether the task is queued again.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lconvnet import atomic
from lconvnet.experiments.family import run_folders
from lconvnet.experiments.run_folder import RunFolder, find_run
from lconvnet.experiments.session import is_running
from lconvnet.experiments.sweep import is_finished

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


@dataclass(frozen=True)
class Submission:
    """The result of `submit`: the id of the job array (None if nothing was left to do), the run of each of its tasks,
    the runs left out with the reason, and the folder of the logs."""

    job: int | None
    runs: tuple[Path, ...]
    left_out: Mapping[Path, str]
    logs: Path


def find_runs(folder: str | Path) -> list[Path]:
    """Return every folder at or below `folder` that holds a cfg.yaml, as sorted absolute paths; ValueError if none."""
    runs = [path.absolute() for path in run_folders(folder)]
    if not runs:
        raise ValueError(f"{folder} holds no cfg.yaml, nor does any folder below it; name a folder such as runs/demo")
    return runs


def submit(
    runs: Sequence[str | Path],
    *,
    resume: bool = False,
    test: bool = False,
    limit: int | None = None,
    options: Sequence[str] = (),
    logs: str | Path | None = None,
    notice: int = NOTICE,
) -> Submission:
    """Submit runs as one job array and return its id.

    Each task trains its run, continues it (`resume`), evaluates it (`test`), or continues and then evaluates it (both).
    Runs with nothing to do, and runs that would refuse, are left out with the reason.

    Args:
        runs: folders that each hold a cfg.yaml.
        limit: how many tasks may run at once.
        options: further options of sbatch, such as `["--time=60", "--gres=gpu:1"]`; they override ours.
        logs: folder of the tasks' output and of the script; by default slurm/ in the folder that the runs share.
        notice: seconds before the time limit at which a task is told to save; Slurm may be half a minute early.

    Raises:
        ValueError: Slurm is missing or refuses the job, or an argument does not fit.
    """
    if not runs:
        raise ValueError("runs=[]: there is nothing to submit; name at least one run folder")
    paths = list(dict.fromkeys(Path(run).absolute() for run in runs))
    folder = Path(logs).absolute() if logs else Path(os.path.commonpath(paths)) / "slurm"
    left_out = {path: reason for path in paths if (reason := why_not(path, resume=resume, test=test))}
    chosen = tuple(path for path in paths if path not in left_out)
    _require(limit, notice, options)
    if not chosen:
        return Submission(None, (), left_out, folder)
    if len(chosen) > (most := _max_array_size()):
        raise ValueError(
            f"{len(chosen)} runs are more than the {most} tasks of an array that this cluster allows (MaxArraySize); "
            "submit the folders below one by one"
        )
    text = script(chosen, resume=resume, test=test, limit=limit, notice=notice)
    folder.mkdir(parents=True, exist_ok=True)
    output = str(folder).replace("%", "%%") + "/%A_%a.out"
    named = [f"--job-name={folder.parent.name}", f"--output={output}"]
    said = _call(["sbatch", "--parsable", *named, *options], text)
    number = re.search(r"^(\d+)(;|$)", said, re.MULTILINE)  # alone on a line, or before the name of a cluster
    if not number:
        raise ValueError(
            f"sbatch printed {said.strip()!r} and no number of a job; look with squeue whether it is queued"
        )
    job = int(number[1])
    atomic.write_text(folder / f"{job}.sh", text)
    return Submission(job, chosen, left_out, folder)


def why_not(run: Path, *, resume: bool, test: bool) -> str:
    """Return why a run needs no task or cannot have one; empty if it gets one."""
    if is_running(RunFolder(run)):
        return "another process works on it"
    try:
        finished = is_finished(RunFolder(run), test=test)
        if resume:
            return "finished" if finished else ""
        if test:
            find_run(run)
        else:
            RunFolder(run).refuse_if_used()
    except ValueError as error:
        return str(error)
    return ""


def _require(limit: int | None, notice: int, options: Sequence[str]) -> None:
    """Refuse a task that would never start, or never end because it is told to stop as soon as it starts."""
    if shutil.which("sbatch") is None:
        raise ValueError("sbatch is not on the PATH; submit on a machine of a Slurm cluster, or use lconvnet train")
    for name, value in (("limit", 1 if limit is None else limit), ("notice", notice)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    for text in re.findall(r"(?:^| )(?:--time[= ]|-t ?)(\S+)", " ".join(options)):
        if time_limit(text) <= notice:
            raise ValueError(
                f"--time={text}: is not longer than the notice of {notice} seconds, so each task would be told to stop "
                "as it starts; give more time or less notice"
            )


def time_limit(text: str) -> float:
    """Return the seconds of a time limit in one of sbatch's formats; infinity for any other text.

    >>> [time_limit(text) for text in ("2", "1:30", "1:0:0", "1-1", "1-0:30", "UNLIMITED")]
    [120, 90, 3600, 90000, 88200, inf]
    """
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        return math.inf
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    first = [0] if not dash and len(parts) < 3 else []  # without days or three parts the first is minutes
    hours, minutes, seconds = (first + parts + [0, 0])[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _max_array_size() -> int:
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _call(["scontrol", "show", "config"]))
    return int(found[1]) if found else 1001


def _call(command: Sequence[str], text: str = "") -> str:
    """Return the output of a Slurm command. Raises ValueError with its own words if it fails."""
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{command[0]} failed ({done.stderr.strip()}); put that right and submit again")
    return done.stdout


def script(runs: Sequence[Path], *, resume: bool, test: bool, limit: int | None, notice: int = NOTICE) -> str:
    """Return the batch script of an array with one task per run.

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
