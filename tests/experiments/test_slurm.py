"""Families of runs on a real Slurm: whatever stops a task, its run ends with the bytes of an undisturbed one."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import lconvnet
from lconvnet.experiments import slurm
from tests.experiments import slurm_daemons
from tests.experiments.slurm_daemons import output, wait_for

ROOT = Path(__file__).parents[2]
FILES = ("record.json", "logs/metrics.csv", "model.safetensors", "checkpoints/best.safetensors")
CFG = {
    "data": {"name": "digits", "limit": 600, "test": 60},
    "model": {"architecture": "mlp", "widths": [64]},
    "loss": {"name": "offset-cross-entropy", "eps": 0.3},
    "training": {"epochs": 60, "batch_size": 16, "checkpoint_every": 50},
    "evaluation": {"eps": [0.3], "attacks": [{"name": "pgd", "steps": 400, "step_size": 0.01}], "batch_size": 4},
}
needs_slurm = pytest.mark.skipif(bool(slurm_daemons.missing()), reason=slurm_daemons.missing() or "Slurm is here")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm_daemons.cluster(tmp_path_factory.mktemp("slurm"), cpus=2) as environment:
        yield environment | {"PYTHONPATH": str(Path(lconvnet.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def here(cluster, monkeypatch):
    """The cluster's environment as ours, so that `submit` reaches it; what a test leaves behind is cancelled."""
    for name in os.environ.keys() - cluster.keys():
        monkeypatch.delenv(name)
    for name, value in cluster.items():
        monkeypatch.setenv(name, value)
    yield cluster
    output(["scancel", "--user=root"], cluster)
    wait_for(lambda: not output(["squeue", "-h", "-t", "R,CG"], cluster), 60, "an empty queue")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cluster):
    """The run that nobody disturbed, without Slurm."""
    folder = make_run(tmp_path_factory.mktemp("whole"))
    for command in (["train", str(folder / "cfg.yaml")], ["evaluate", str(folder)]):
        output([sys.executable, "-m", "lconvnet", *command, "--quiet"], cluster, seconds=400)
    return folder


def make_run(folder, **training):
    folder.mkdir(parents=True, exist_ok=True)
    values = CFG | {"training": CFG["training"] | training}
    (folder / "cfg.yaml").write_text(yaml.safe_dump(values))
    return folder


def tasks(job):
    """Number, state, reason of every task, the finished ones too."""
    lines = output(["squeue", "-h", "-r", "-t", "all", "-j", str(job), "-o", "%K %T %r"], os.environ).splitlines()
    return sorted((int(number), state, reason) for number, state, reason in (line.split(maxsplit=2) for line in lines))


def states(job):
    return [state for _, state, _ in tasks(job)]


def fact(job, name):
    """A fact of task 0, such as Restarts."""
    text = output(["scontrol", "show", "job", f"{job}_0", "--oneliner"], os.environ)
    return text.partition(f" {name}=")[2].split()[0]


def log(folder, job):
    return (folder / "slurm" / f"{job}_0.out").read_text()


def wait_for_end(job, seconds=600):
    """Wait for all tasks of a job; a requeued one need not wait for its two minutes."""

    def ended():
        found = tasks(job)
        for number, state, reason in found:
            if state == "PENDING" and reason == "BeginTime":
                time.sleep(2)  # slurmd refuses a start in the second in which it killed the job
                output(["scontrol", "update", f"jobid={job}_{number}", "StartTime=now"], os.environ)
        return found and {state for _, state, _ in found} <= {"COMPLETED", "FAILED", "CANCELLED"}

    wait_for(ended, seconds, f"the end of job {job}")


def wait_for_epochs(folder, job, count=3):
    """Wait until the run below `folder` has trained some epochs and is still at work."""
    metrics = folder / "logs" / "metrics.csv"
    wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > count, 300, "some epochs")
    assert states(job) == ["RUNNING"]
    assert len(metrics.read_text().splitlines()) < CFG["training"]["epochs"] / 2, "too late: the run is nearly done"


def assert_same_files(one, other, names=FILES):
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert [path.name for path in other.rglob("*.tmp")] == []


@pytest.mark.slow
@needs_slurm
def test_an_array_of_short_runs_two_at_a_time(here, tmp_path):
    count = 12
    runs = [make_run(tmp_path / f"a family/{seed:02}", epochs=1, batch_size=64) for seed in range(count)]
    script = [str(ROOT / "batch_run.sh"), str(tmp_path / "a family"), "2", "--time=10", "--comment=short"]
    text = output(script, here | {"PYTHON": sys.executable})
    job = int(text.split()[2].rstrip(":"))
    assert text.startswith(f"submitted job {job}: {count} of {count} runs")
    most, end = 0, time.monotonic() + 600
    while (found := states(job)) != ["COMPLETED"] * count:
        most = max(most, sum(state in ("RUNNING", "COMPLETING") for state in found))
        assert time.monotonic() < end and "FAILED" not in found
        time.sleep(0.2)
    assert most == 2
    assert fact(job, "Comment") == "short"
    for number, run in enumerate(runs):
        assert all((run / name).exists() for name in FILES)
        assert f"train {run}/cfg.yaml" in (tmp_path / "a family" / "slurm" / f"{job}_{number}.out").read_text()
    again = slurm.submit(runs, resume=True, logs=tmp_path / "logs")
    assert (again.job, again.runs, set(again.left_out.values())) == (None, (), {"finished"})


TOLD = {
    "step": "scancel --signal=USR1 {job}",
    "batch": "scancel --signal=USR1 --batch {job}",
    "both": "scancel --signal=USR1 --full {job}",
    "term": "scancel --signal=TERM {job}",
    "term-batch": "scancel --signal=TERM --batch {job}",
    "administrator": "scontrol requeue {job}",
}


@pytest.mark.slow
@needs_slurm
@pytest.mark.parametrize("command", TOLD.values(), ids=TOLD)
def test_a_task_that_is_told_to_stop_saves_and_goes_on(command, here, whole, tmp_path):
    folder = make_run(tmp_path / "run")
    job = slurm.submit([folder]).job
    wait_for_epochs(folder, job)
    output(command.format(job=job).split(), here)
    wait_for_end(job)
    assert (states(job), fact(job, "Restarts")) == (["COMPLETED"], "1")
    assert f"continue {folder} with" in log(folder, job), "it saved"
    assert "--resume" in log(folder, job).partition("start 2")[2]
    assert_same_files(whole, folder)


@pytest.mark.slow
@needs_slurm
def test_killed_by_srun_it_goes_on_from_the_last_checkpoint(here, whole, tmp_path):
    """`--full` gives SIGTERM to srun itself, which then kills the step."""
    folder = make_run(tmp_path / "run")
    job = slurm.submit([folder]).job
    wait_for_epochs(folder, job)
    output(["scancel", "--signal=TERM", "--full", str(job)], here)
    wait_for_end(job)
    assert (states(job), fact(job, "Restarts")) == (["COMPLETED"], "1")
    assert_same_files(whole, folder)


@pytest.mark.slow
@needs_slurm
@pytest.mark.parametrize("command", ["scancel --signal=USR1 {job}", "scancel --signal=USR1 --batch {job}"])
def test_told_to_stop_while_python_is_still_importing(command, here, whole, tmp_path):
    folder = make_run(tmp_path / "run")
    job = slurm.submit([folder]).job
    wait_for(lambda: ".0" in output(["squeue", "-h", "-s", "-j", str(job)], here), 60, "the step")
    output(command.format(job=job).split(), here)
    wait_for_end(job)
    assert "User defined signal 1" in log(folder, job), "Python had no handler yet"
    assert (states(job), fact(job, "Restarts")) == (["COMPLETED"], "1")
    assert_same_files(whole, folder)


@pytest.mark.slow
@needs_slurm
def test_an_evaluation_goes_on_too(here, whole, tmp_path):
    folder = make_run(tmp_path / "run")
    job = slurm.submit([folder], resume=True, test=True).job
    wait_for(lambda: any((folder / "evaluation").glob("pgd*.jsonl")), 400, "attacks")
    output(["scancel", "--signal=USR1", "--full", str(job)], here)
    wait_for_end(job)
    assert (states(job), fact(job, "Restarts")) == (["COMPLETED"], "1")
    assert_same_files(whole, folder, (*FILES, "results.yaml", "examples.parquet"))
    again = slurm.submit([folder], resume=True, test=True)
    assert (again.job, set(again.left_out.values())) == (None, {"finished"})


@pytest.mark.slow
@needs_slurm
def test_the_time_limit(here, tmp_path):
    """A minute is the shortest there is; Slurm looks every 30 seconds, so the notice comes 5 to 35 after a start."""
    folder, undisturbed = (make_run(tmp_path / name, epochs=300) for name in ("run", "whole"))
    job = slurm.submit([folder], options=["--time=1"], notice=25).job
    train = [sys.executable, "-m", "lconvnet", "train", str(undisturbed / "cfg.yaml"), "--quiet"]
    with subprocess.Popen(train, env=here) as process:
        wait_for(lambda: states(job) == ["PENDING"] and fact(job, "Restarts") == "1", 120, "the requeue")
        output(["scontrol", "update", f"jobid={job}_0", "TimeLimit=60"], here)  # one such stop is enough
        wait_for_end(job, 1200)
        assert process.wait(600) == 0
    assert (states(job), fact(job, "Restarts")) == (["COMPLETED"], "1")
    assert "stopped by SIGUSR1" in log(folder, job)
    assert "TIME LIMIT" not in log(folder, job), "told in time"
    assert_same_files(undisturbed, folder)


@pytest.mark.slow
@needs_slurm
def test_a_preempted_task_goes_on(here, whole, tmp_path):
    folder = make_run(tmp_path / "run")
    job = slurm.submit([folder], options=["--exclusive"]).job
    wait_for_epochs(folder, job)
    output(["sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 3"], here)
    wait_for(lambda: "PREEMPTION" in log(folder, job), 60, "the preemption")
    wait_for_end(job)
    assert (states(job), fact(job, "Restarts")) == (["COMPLETED"], "1")
    assert_same_files(whole, folder)


@pytest.mark.slow
@needs_slurm
def test_a_node_that_goes_down_loses_nothing(here, whole, tmp_path):
    folder = make_run(tmp_path / "run")
    job = slurm.submit([folder]).job
    wait_for_epochs(folder, job)
    node = output(["sinfo", "-h", "-o", "%n"], here).strip()
    output(["scontrol", "update", f"nodename={node}", "state=down", "reason=test"], here)
    wait_for(lambda: states(job) == ["PENDING"], 60, "the requeue")
    output(["scontrol", "update", f"nodename={node}", "state=resume"], here)
    wait_for(lambda: not at_work(folder), 60, "the end of the old process, for which a requeued task waits two minutes")
    wait_for_end(job)
    assert (states(job), fact(job, "Restarts")) == (["COMPLETED"], "1")
    assert_same_files(whole, folder)


@pytest.mark.slow
@needs_slurm
def test_a_wrong_configuration_fails_once(here, tmp_path):
    folder = make_run(tmp_path / "run", epochs=1)
    job = slurm.submit([folder], options=["--hold"]).job
    make_run(folder, epochs=-1)
    left_out = slurm.submit([folder]).left_out
    assert "training.epochs is -1" in left_out[folder.absolute()], "known before, it is not submitted at all"
    output(["scontrol", "release", str(job)], os.environ)
    wait_for_end(job)
    assert (states(job), fact(job, "ExitCode"), fact(job, "Restarts")) == (["FAILED"], "2:0", "0")
    assert "training.epochs is -1" in log(folder, job)


@pytest.mark.slow
@needs_slurm
def test_a_cancelled_task_is_not_queued_again(here, tmp_path):
    folder = make_run(tmp_path / "run")
    job = slurm.submit([folder]).job
    wait_for_epochs(folder, job)
    output(["scancel", str(job)], here)
    wait_for_end(job)
    assert (states(job), fact(job, "Restarts")) == (["CANCELLED"], "0")
    assert f"continue {folder} with" in log(folder, job), "it saved all the same"


def at_work(folder):
    """Whether a process of ours trains in this folder."""
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if readable(path)]
    return any(str(folder).encode() in command and b"train" in command for command in commands)


def readable(path):
    try:
        return bool(path.read_bytes())
    except OSError:
        return False
