"""What is submitted, without a Slurm: the batch script runs in bash with stubs in place of Slurm's commands."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lconvnet import cli
from lconvnet.experiments import execute, slurm
from lconvnet.experiments.loading import dump, parse
from lconvnet.experiments.run_folder import RunFolder
from lconvnet.experiments.slurm import script

ROOT = Path(__file__).parents[2]
VALUES = {
    "data": {"name": "digits", "limit": 300, "test": 60},
    "model": {"architecture": "mlp", "widths": [16]},
    "training": {"epochs": 1},
    "evaluation": {"eps": [0.1], "attacks": [{"name": "fgsm"}]},
}
ODD = ["plain", "with space", "quote's", 'double"', "$HOME `id`", "new\nline", "100%"]
SBATCH = """\
cat > input
printf "%s\\0" "$@" > arguments
echo "${REFUSED:-}" >&2
[[ -z ${REFUSED:-} ]] && echo "7;c"
"""
STUBS = {
    "srun": 'printf "%s\\n" "$*" >> srun; exit $CODE',
    "squeue": 'echo "$STATE"',
    "scontrol": 'if [[ $1 == show ]]; then echo "MaxArraySize = ${MOST:-1001}"; else echo "$*" >> scontrol; fi',
    "sbatch": SBATCH,
}


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """Slurm's commands as scripts that note what they are called with, in the current folder."""
    for name, body in STUBS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_run(folder, *, train=False, evaluate=False):
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    run.config.write_text(dump(parse(VALUES)))
    if train:
        execute.train(parse(VALUES), run, source=run.config, progress=False)
    if evaluate:
        execute.evaluate(run)
    return folder


def start(text, *, task=0, code=0, state="RUNNING None", **variables):
    """Run a batch script as task `task`, with commands that end with `code`."""
    numbers = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": str(task), "CODE": str(code), "STATE": state}
    return subprocess.Popen(["bash", "-c", text], env=os.environ | numbers | variables)


def noted(name):
    return Path(name).read_text() if Path(name).exists() else ""


PLAIN = script([Path("/runs/a")], resume=False, test=False, limit=None)


@pytest.mark.parametrize("number", range(len(ODD)))
def test_a_task_gets_its_run_whatever_its_name(stubs, number):
    text = script([Path("/runs") / name for name in ODD], resume=False, test=False, limit=3)
    assert "#SBATCH --array=0-6%3\n" in text
    assert start(text, task=number).wait() == 0
    assert noted("srun") == f"{sys.executable} -m lconvnet train /runs/{ODD[number]}/cfg.yaml\n"


@pytest.mark.parametrize(
    ("resume", "test", "restarts", "commands"),
    [
        (False, False, "", ["train /a/cfg.yaml"]),
        (False, False, "1", ["train /a/cfg.yaml --resume"]),
        (True, False, "", ["train /a/cfg.yaml --resume"]),
        (False, True, "2", ["evaluate /a"]),
        (True, True, "", ["train /a/cfg.yaml --resume", "evaluate /a"]),
    ],
)
def test_the_commands(stubs, resume, test, restarts, commands):
    text = script([Path("/a")], resume=resume, test=test, limit=None)
    assert start(text, **({"SLURM_RESTART_COUNT": restarts} if restarts else {})).wait() == 0
    assert noted("srun").splitlines() == [f"{sys.executable} -m lconvnet {line}" for line in commands]


@pytest.mark.parametrize("code", [0, 1, 2, 3, 130, 137, 138, 143])
@pytest.mark.parametrize("state", ["RUNNING None", "COMPLETING TimeLimit", "COMPLETING None", "CANCELLED None", ""])
def test_only_an_interrupted_task_that_still_runs_is_queued_again(stubs, code, state):
    assert start(PLAIN, code=code, state=state).wait() == code
    again = code in (3, 130, 138, 143) and state in ("RUNNING None", "COMPLETING TimeLimit")
    assert noted("scontrol") == ("requeue 5_0\n" if again else "")


def test_no_evaluation_after_an_interrupted_training(stubs):
    text = script([Path("/a")], resume=True, test=True, limit=None)
    assert start(text, code=3).wait() == 3
    assert noted("srun").count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize(("ending", "code"), [("exit 3", 3), ("exit 2", 2), ("exit 0", 0), ("kill -KILL $$", 137)])
def test_a_notice_to_the_script_reaches_the_step_as_sigusr1(stubs, number, ending, code):
    body = f"trap '{ending}' USR1; trap 'exit 99' TERM; touch ready; while :; do sleep 0.05; done"
    (stubs / "bin" / "srun").write_text(f"#!/usr/bin/env bash\n{body}\n")
    process = start(PLAIN)
    end = time.monotonic() + 20
    while not Path("ready").exists() and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(20) == code
    assert noted("scontrol") == ("requeue 5_0\n" if code in (3, 137) else "")


def test_a_notice_that_srun_loses_is_repeated(stubs):
    body = "trap 'touch once; trap \"exit 3\" USR1' USR1; touch ready; while :; do sleep 0.05; done"
    (stubs / "bin" / "srun").write_text(f"#!/usr/bin/env bash\n{body}\n")
    process = start(PLAIN)
    while not Path("ready").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 3
    assert Path("once").exists()


def test_a_notice_between_two_commands_starts_no_other(stubs):
    (stubs / "bin" / "srun").write_text("#!/usr/bin/env bash\ntrap '' USR1\necho x >> srun\nkill -USR1 $PPID\n")
    text = script([Path("/a")], resume=True, test=True, limit=None)
    assert start(text).wait(20) in (3, 255), "255 where bash lost the code to the trap"
    assert (noted("srun"), noted("scontrol")) == ("x\n", "requeue 5_0\n")


def test_submit_calls_sbatch_and_keeps_the_script(stubs):
    runs = [make_run(stubs / "family 100%" / name) for name in ("b", "a/c")]
    done = slurm.submit(slurm.find_runs(stubs / "family 100%"), limit=1, options=["--time=3", "--comment=x y"])
    logs = stubs / "family 100%" / "slurm"
    assert done == slurm.Submission(7, (runs[1], runs[0]), {}, logs)
    given = noted("arguments").split("\0")
    assert given[:3] == ["--parsable", "--job-name=family 100%", f"--output={stubs}/family 100%%/slurm/%A_%a.out"]
    assert given[3:] == ["--time=3", "--comment=x y", ""]
    assert (logs / "7.sh").read_text() == noted("input") == script(done.runs, resume=False, test=False, limit=1)


def test_runs_without_work_are_left_out(stubs):
    family = stubs / "family"
    new, trained = make_run(family / "new"), make_run(family / "trained", train=True)
    evaluated = make_run(family / "evaluated", train=True, evaluate=True)
    runs = slurm.find_runs(family)

    def left_out(**flags):
        done = slurm.submit(runs, **flags)
        assert {*done.runs, *done.left_out} == set(runs)
        return {path: reason for path, reason in done.left_out.items() if path}

    assert left_out(resume=True) == {trained: "finished", evaluated: "finished"}
    assert left_out(resume=True, test=True) == {evaluated: "finished"}
    assert [*left_out(test=True)] == [new]
    assert "holds no trained run" in left_out(test=True)[new]
    assert [*left_out()] == [evaluated, trained]
    assert "already holds a run, which is never overwritten; continue it with --resume" in left_out()[trained]
    (trained / "model.safetensors").unlink()  # stopped just before its end
    (evaluated / "cfg.yaml").write_text((evaluated / "cfg.yaml").read_text().replace("eps: [0.1]", "eps: [0.2]"))
    assert left_out(resume=True) == {evaluated: "finished"}
    assert left_out(resume=True, test=True) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": []}, r"runs=\[\]: there is nothing to submit"),
        ({"limit": 0}, "limit=0: must be at least 1"),
        ({"notice": 0}, "notice=0: must be at least 1"),
        ({"options": ["--time=2"]}, "--time=2: is not longer than the notice of 120 seconds.*more time or less notice"),
        ({"options": ["-t", "00:01:30"]}, "--time=00:01:30: is not longer than the notice"),
    ],
)
def test_what_cannot_work_is_refused(stubs, options, message):
    with pytest.raises(ValueError, match=message):
        slurm.submit(**({"runs": [make_run(stubs / "a")]} | options))
    assert not Path("arguments").exists()


def test_more_runs_than_an_array_holds_are_refused(stubs, monkeypatch):
    monkeypatch.setenv("MOST", "2")
    runs = [make_run(stubs / name) for name in "abc"]
    with pytest.raises(ValueError, match=r"3 runs are more than the 2 tasks of an array .*MaxArraySize.*one by one"):
        slurm.submit(runs)
    assert slurm.submit(runs[:2]).job == 7


def test_the_words_of_sbatch_are_passed_on(stubs, monkeypatch):
    monkeypatch.setenv("REFUSED", "sbatch: error: invalid partition specified: x")
    with pytest.raises(ValueError, match=r"sbatch failed \(sbatch: error: invalid partition specified: x\)"):
        slurm.submit([make_run(stubs / "a")])
    assert not list(stubs.rglob("*.sh"))


def test_without_slurm_one_line_and_code_2(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "a")
    monkeypatch.setenv("PATH", str(tmp_path))
    code = cli.invoke(cli.app, ["submit", str(tmp_path)])
    said = capsys.readouterr()
    assert (code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "sbatch is not on the PATH; submit on a machine of a Slurm cluster, or use lconvnet train" in said.err


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no cfg.yaml, nor does any folder below it"):
        slurm.find_runs(tmp_path)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("batch_run", []),
        ("batch_run_resume", ["--resume"]),
        ("batch_run_test", ["--test"]),
        ("batch_run_resume_test", ["--resume", "--test"]),
    ],
)
def test_the_scripts_at_the_root_pass_on_what_they_are_given(stubs, name, flags):
    (stubs / "bin" / "python").write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    (stubs / "bin" / "python").chmod(0o755)
    command = [ROOT / f"{name}.sh", "my runs", "4", "--time=9"]
    done = subprocess.run(command, env=os.environ | {"PYTHON": "python"}, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["-m", "lconvnet", "submit", *flags, "--limit", "4", "my runs", "--", "--time=9"]


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        pytest.param("batch_run", ["train"], marks=pytest.mark.slow),
        pytest.param("batch_run_resume", ["train", "--resume"], marks=pytest.mark.slow),
        pytest.param("batch_run_test", ["evaluate"], marks=pytest.mark.slow),
        ("batch_run_resume_test", ["train", "--resume", "evaluate"]),
    ],
)
def test_the_scripts_at_the_root(stubs, name, commands):
    run = make_run(stubs / "my runs" / "a", train=name == "batch_run_test")
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [ROOT / f"{name}.sh", "my runs", "4", "--time=9"], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "submitted job 7: 1 of 1 runs, output in my runs/slurm/7_*.out\n", done.stderr
    text = noted("input")
    assert "--array=0-0%4\n" in text and str(run) in text
    assert all((f" {word} " in text.replace("\n", " ")) is (word in commands) for word in ("train", "evaluate"))
    assert ("--resume &&" in text or 'cfg.yaml" --resume\n' in text) is ("--resume" in commands)
    assert noted("arguments").split("\0")[3:] == ["--time=9", ""]


def test_the_scripts_say_how_they_are_used():
    done = subprocess.run([ROOT / "batch_run_test.sh"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "usage: batch_run_test.sh DIR [LIMIT] [sbatch options...]\n")


def test_the_command_says_what_it_left_out(stubs):
    make_run(stubs / "runs" / "a", train=True)
    arguments = ["submit", "runs", "--resume", "--limit", "2"]
    shown = CliRunner().invoke(cli.app, arguments)
    assert shown.stdout == "nothing to submit: none of 1 runs has anything to do\n"
    assert shown.stderr == f"not submitted: {stubs}/runs/a: finished\n"
    found = json.loads(CliRunner().invoke(cli.app, [*arguments, "--json"]).stdout)
    assert found == {"job": None, "runs": [], "left_out": {f"{stubs}/runs/a": "finished"}, "logs": "runs/slurm"}
