"""The verbs, each through the real command line in a subprocess, with a plug-in that core knows nothing about."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = "torch", "transformers", "diffusers", "numpy", "matplotlib", "tyro", "rich"
IMPORTED = f"""
import sys
from fewstep.cli import main
code = main(["list"])
print("HEAVY", *[name for name in {HEAVY} if name in sys.modules])
sys.exit(code)
"""
LIFE = """
import torch
from fewstep import load, plugins
loaded = load("toy-net")
model, x = loaded.model, torch.ones(3, 256)
before, state = model(x), {k: v.clone() for k, v in model.state_dict().items()}
with plugins.methods()["skip"].load()(keep=0.25).apply(model):
    print("changed", not torch.equal(model(x), before))
print("restored", torch.equal(model(x), before), all(torch.equal(v, state[k]) for k, v in model.state_dict().items()))
"""


def test_without_a_verb_it_teaches(fewstep):
    bare, asked = fewstep(), fewstep("--help")
    assert bare.returncode == asked.returncode == 0 and bare.stdout == asked.stdout
    for verb in ("list", "show", "run", "bench", "fit", "train", "export", "report", "kernels", "push"):
        assert f"\n  {verb} " in bare.stdout and f"fewstep {verb}" in bare.stdout


def test_list_finds_an_external_plug_in_and_imports_nothing_heavy(tmp_path, environment):
    run = subprocess.run(
        [sys.executable, "-c", IMPORTED], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    for line in ("skip", "leave out layers", "arXiv:2401.00001", "toy-net", "walk", "unit-score"):
        assert line in run.stdout
    assert run.stdout.splitlines()[-1] == "HEAVY"


def test_fewstep_plugins_restricts(fewstep):
    assert "toy-net" not in fewstep("list", FEWSTEP_PLUGINS="zoo").stdout
    only = fewstep("list", FEWSTEP_PLUGINS="toy").stdout
    assert "toy-net" in only and "smollm2" not in only and "unit-score" in only


def test_show_tells_fields_defaults_and_meaning(fewstep):
    shown = fewstep("show", "skip")
    assert shown.returncode == 0
    for part in (
        "https://arxiv.org/abs/2401.00001",
        "models: Net",
        "occupies: layers",
        "Share of the layers that stays.",
    ):
        assert part in shown.stdout
    assert ["keep", "0.5"] in [line.split()[:2] for line in shown.stdout.splitlines()]
    assert "Rows." in fewstep("show", "walk").stdout
    assert "four layers" in fewstep("show", "toy-net").stdout


def test_show_tells_what_a_method_would_do_with_a_model(fewstep, tmp_path):
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "config.json").write_text('{"layers": 48}')
    shown = fewstep("show", "skip", "--model", str(folder))
    assert shown.returncode == 0 and shown.stderr == ""
    assert "layers of net" in shown.stdout and "48" in shown.stdout


def test_an_external_method_is_applied_and_removed(tmp_path, environment):
    command = [sys.executable, "-c", LIFE]
    run = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert run.stdout.splitlines() == ["changed True", "restored True True"], run.stderr


def test_a_list_of_numbers_is_an_arm_for_each(fewstep, tmp_path):
    run = fewstep("bench", "skip", "--model", "toy-net", "--keep", "0.25,0.5", "--repeats", "1", "--vs", "liar")
    assert run.returncode == 1 and "liar" in run.stderr, run.stderr
    rows = [json.loads(line) for line in (tmp_path / "results/walk.jsonl").read_text().splitlines()]
    arms = {(row["method"], row["config"].get("keep", 0.5)) for row in rows}
    assert arms == {("dense", 0.5), ("skip", 0.25), ("skip", 0.5), ("liar", 0.25), ("liar", 0.5)}


def test_bench_measures_shows_and_records(fewstep, tmp_path):
    done = fewstep("bench", "skip", "--model", "toy-net", "--keep", "0.25", "--task.length", "64", "--vs", "dense,skip",
                   "--repeats", "2", "--threads", "1", "--seed", "5")  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "gate: skip keep=0.25 at its identity setting equals dense: green" in done.stdout
    assert "[11/11] repeat 2: skip: forward" in done.stdout and "speed-up" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "results/walk.jsonl").read_text().splitlines()]
    ratio = next(row for row in rows if row["metric"] == "forward_speedup" and row["config"] == {"keep": 0.25})
    (run,) = [json.loads(line) for line in (tmp_path / "results/runs.jsonl").read_text().splitlines()]
    assert ratio["baseline"] == "dense-eager-float32" and ratio["unit"] == "x" and run["threads"] == 1
    assert ratio["params"] == {"length": 64, "endless": -1, "nan": -1, "seed": 5, "repeats": 2}
    assert run["command"].startswith("fewstep bench skip --model toy-net --keep 0.25")
    assert {row["run"] for row in rows} == {run["id"]} and run["versions"]["toy"] == "1.0"
    samples = json.loads((tmp_path / f"results/samples/{ratio['run']}.json").read_text())
    assert list(samples["arms"]) == ["dense", "skip keep=0.25", "skip"]
    shown = fewstep("show", "skip").stdout
    assert "measured" in shown and "skip keep=0.25" in shown
    report = fewstep("report", "--archive")
    assert report.returncode == 0 and "| skip keep=0.25 |" in report.stdout
    assert report.stdout.startswith("moved 0 rows to results/archive\n")


def test_bench_measures_more_settings_in_the_same_run(fewstep, tmp_path):
    also = ("--also", "keep=0.25 order=0,2,3", "keep=0.75")
    run = fewstep("bench", "skip", "--model", "toy-net", "--task.length", "8", "--repeats", "1", *also)
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in (tmp_path / "results/walk.jsonl").read_text().splitlines()]
    configs = [row["config"] for row in rows if row["metric"] == "forward_speedup"]
    assert configs == [{}, {"keep": 0.25, "order": [0, 2, 3]}, {"keep": 0.75}]
    assert len({row["run"] for row in rows}) == 1


def test_flags_are_the_fields_and_a_clash_gets_a_prefix(fewstep):
    shown = fewstep("bench", "skip", "--help")
    assert shown.returncode == 0 and shown.stderr == ""
    for flag in ("--model STR", "--keep FLOAT", "--length INT", "--task.length INT", "--order", "--results PATH"):
        assert flag in shown.stdout
    assert "(default: 0.5)" in shown.stdout and "(default: 512)" in shown.stdout


SHRINK = """
from fewstep.cards import Card, hookimpl

@hookimpl
def fewstep_methods():
    return [Card(name="shrink", summary="brings no task", target="shrink.method:Skip")]
"""


def test_help_helps_before_a_task_is_chosen(fewstep, install, tmp_path):
    """Of a method without a task of its own, where there are several to choose from."""
    site = install(tmp_path / "site", "shrink", {"plugin.py": SHRINK, "method.py": "from toy.method import Skip"})
    refused = fewstep("bench", "shrink", "--model", "toy-net", sites=(site,))
    assert refused.returncode == 2 and "--task is needed" in refused.stderr
    shown = fewstep("bench", "shrink", "--help", sites=(site,))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "--model STR" in shown.stdout and "--keep FLOAT" in shown.stdout
    assert "--task is needed:" in shown.stdout and "walk" in shown.stdout


def test_run_hands_model_and_method_to_the_inputs(fewstep):
    run = fewstep("run", "skip", "--model", "toy-net", "--prompt", "hi", "--order", "0", "2", "3")
    assert run.stdout == "hi: 3 layers, Skip(keep=0.5, length=1, order=(0, 2, 3))\n"


def test_a_fitted_method_is_saved_and_used(fewstep, tmp_path):
    fit = fewstep("fit", "skip", "--model", "toy-net", "--target", "0.75", "--out", "fitted")
    assert fit.returncode == 0 and "--method-from fitted" in fit.stdout
    assert json.loads((tmp_path / "fitted/fewstep.json").read_text())["fields"]["keep"] == 0.75
    used = fewstep("run", "skip", "--model", "toy-net", "--prompt", "hi", "--method-from", "fitted")
    assert used.stdout.startswith("hi: 3 layers")
    other = fewstep("bench", "liar", "--model", "toy-net", "--task.length", "8", "--method-from", "fitted")
    assert other.returncode == 2 and other.stderr == "fewstep: fitted holds a skip method, not liar\n"


def test_a_saved_method_is_written_in_a_format_of_its_class(fewstep, tmp_path):
    fewstep("fit", "skip", "--model", "toy-net", "--target", "0.75", "--out", "fitted")
    beside = fewstep("export", "fitted", "--format", "text")
    assert beside.stdout == "one file\nwrote fitted/text\n" and (tmp_path / "fitted/text/method.txt").is_file()
    fewstep("export", "fitted", "--format=text", "--out", "there", "--greeting", "good day")
    assert (tmp_path / "there/method.txt").read_text() == "good day Skip(keep=0.75, length=1, order=None)"
    assert "--greeting STR" in fewstep("export", "fitted", "--format", "text", "--help").stdout
    assert "exports to text: its fields in words" in fewstep("show", "skip").stdout


def test_kernels_are_listed_with_the_version_taken_here(fewstep):
    listed = fewstep("kernels")
    assert listed.returncode == 0 and "unit-score naive, cpu, triton" in " ".join(listed.stdout.split())
    assert (
        fewstep("kernels", "unit-sore").stderr == "fewstep: no kernel is called 'unit-sore': did you mean unit-score?\n"
    )


def test_a_reader_that_leaves_is_no_error(environment, tmp_path):
    command = [sys.executable, "-u", "-m", "fewstep", "list"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 141
    process.stderr.close()
