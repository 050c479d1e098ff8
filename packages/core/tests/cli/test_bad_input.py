"""Wrong input and interruption: one clear line, exit code 2 (130 for Ctrl-C), nothing damaged."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROW = {  # with its own provenance, as rows were stored once
    **dict.fromkeys(("task", "model", "method", "metric", "unit", "run", "device", "dtype", "commit", "command"), "x"),
    **{"value": 1.0, "weights": "random", "threads": 1, "versions": {}, "date": "2026-11-23T00:00:00+00:00"},
}
BENCH = "bench", "skip", "--model", "toy-net", "--nan", "-1"
CARDS = """
from fewstep.cards import Card, hookimpl
@hookimpl
def fewstep_methods():
    return [Card(name="{name}", summary="a double", target="x:X")]
"""


def refused(run: subprocess.CompletedProcess, *parts: str) -> None:
    """One line on stderr that holds `parts`, and exit code 2."""
    assert run.returncode == 2, run.stdout + run.stderr
    assert run.stderr.startswith("fewstep: ") and run.stderr.count("\n") == 1, run.stderr
    for part in parts:
        assert part in run.stderr


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("lits",), ("'lits'", "did you mean list")),
        (("bench", "skpi", "--model", "toy-net"), ("no method is called 'skpi'", "did you mean skip")),
        (("bench",), ("needs the name of a method", "skip")),
        (("bench", "skip", "--model", "toy-net", "--task", "wlak"), ("no task is called 'wlak'", "walk")),
        (("bench", "skip", "--model", "toy-nt"), ("'toy-nt'", "did you mean toy-net")),
        (("run", "skip", "--model", "someone/something", "--prompt", "x"), ("someone/something", "offline", "toy-net")),
        (("bench", "skip"), ("Missing", "--model")),
        ((*BENCH, "--kep", "1"), ("Unrecognized", "--kep", "--keep")),
        ((*BENCH, "--keep", "many"), ("--keep", "'many'")),
        ((*BENCH, "--keep", "7"), ("keep must be in (0, 1], found 7.0",)),
        ((*BENCH, "--repeats", "0"), ("repeats must be at least 1",)),
        ((*BENCH, "--threads", "100000000"), ("threads must be at least 1 and at most 1024",)),
        ((*BENCH, "--keep", "nan"), ("nan",)),
        ((*BENCH, "--seed", "9" * 30), (f"--seed {'9' * 30}", "at most 64 bits")),
        ((*BENCH, "--dtype", "int3"), ("'int3'", "float32")),
        ((*BENCH, "--device", "gpu"), ("--device gpu",)),
        ((*BENCH, "--vs", "skip"), ("skip is named again",)),
        ((*BENCH, "--also", "kep=1"), ("--kep", "--keep")),
        ((*BENCH, "--also", "keep=many"), ("--keep", "'many'")),
        ((*BENCH, "--method-from", "nowhere"), ("nowhere is neither a folder nor a method on the hub",)),
        (("run", "liar", "--model", "toy-net"), ("liar has nothing to run",)),
        (("fit", "liar", "--model", "toy-net", "--out", "o"), ("liar has nothing to fit", "skip")),
        (("show", "tyo-net"), ("did you mean toy-net",)),
        (("show", "skip", "--keep", "1"), ("--model FOLDER", "--keep 1")),
        (("show", "skip", "--model", "nowhere"), ("nowhere is not a model folder",)),
        (("show", "walk", "--model", "nowhere"), ("walk says nothing about single models",)),
        (("report", "nothing-here"), ("nothing-here",)),
        (("push", ".", "me/mine"), ("not a saved fewstep method",)),
    ],
    ids=lambda value: " ".join(value) if value and isinstance(value, tuple) else "",
)
def test_wrong_words(fewstep, tmp_path, words, parts):
    refused(fewstep(*words), *parts)
    assert not (tmp_path / "results/walk.jsonl").exists()


UNHEAVY = """
import sys
from fewstep.cli import main
code = main({words})
print(*({{"torch", "transformers", "diffusers", "numpy"}} & set(sys.modules)))
sys.exit(code)
"""
RECIPES = """
from fewstep.cards import Card, hookimpl
@hookimpl
def fewstep_recipes():
    return [Card(name="steps", summary="some steps", target="x:X")]
"""


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["bench", "skpi", "--model", "toy-net"], "no method is called 'skpi'"),
        (["bench", "skip", "--model", "toy-nt"], "'toy-nt'"),
        (["bench", "skip", "--model", "toy-net", "--task", "wlak"], "no task is called 'wlak'"),
        (["bench", "skip", "--model", "toy-net", "--vs", "liar,lair"], "no method is called 'lair'"),
        (["bench", "steps", "--task", "wlak"], "no task is called 'wlak'"),
        (["bench", "steps", "--task", "walk", "--vs", "steps lam=0", "stpes lam=1"], "no recipe is called 'stpes'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_names_are_answered_without_importing_torch(environment, install, tmp_path, words, part):
    site = install(tmp_path / "site", "steps", {"plugin.py": RECIPES})
    command = [sys.executable, "-c", UNHEAVY.format(words=words)]
    run = subprocess.run(command, cwd=tmp_path, env=environment(site), capture_output=True, text=True)
    refused(run, part)
    assert run.stdout == "\n"


def test_wrong_exports(fewstep, tmp_path):
    for name in ("skip", "liar"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "fewstep.json").write_text(json.dumps({"method": name, "fields": {}}))
    refused(fewstep("export"), "needs a saved method")
    refused(fewstep("export", "nowhere", "--format", "text"), "nowhere is neither a folder")
    refused(fewstep("export", "skip"), "formats of skip: text")
    refused(fewstep("export", "skip", "--format", "test"), "no format of skip is called 'test': did you mean text")
    refused(fewstep("export", "skip", "--format", "text", "--gruss", "x"), "--gruss")
    refused(fewstep("export", "liar", "--format", "text"), "liar has no format")


def test_push_offline(fewstep, tmp_path):
    (tmp_path / "fewstep.json").write_text("{}")
    refused(fewstep("push", ".", "me/mine"), "HF_HUB_OFFLINE")
    refused(fewstep("push", ".", "mine"), "USER/NAME")


def test_traceback_on_request(fewstep):
    run = fewstep("bench", "skpi", FEWSTEP_TRACEBACK="1")
    assert run.returncode == 2 and "Traceback" in run.stderr and run.stderr.splitlines()[-1].startswith("fewstep: ")


def test_a_broken_plug_in_is_named_and_the_others_work(fewstep, install, tmp_path):
    site = install(tmp_path / "site", "shaky", {"plugin.py": "raise RuntimeError('no\\nluck')"})
    listed = fewstep("list", sites=(site,))
    assert listed.returncode == 0 and "toy-net" in listed.stdout
    assert listed.stderr == "fewstep: plug-in shaky (shaky) failed: RuntimeError: no luck\n"
    refused(fewstep("show", "nothing", sites=(site,)), "shaky", "no luck")


def test_two_plug_ins_with_one_name(fewstep, install, tmp_path):
    site = install(tmp_path / "site", "toy2", {"plugin.py": ""}, entry="toy")
    refused(fewstep("list", sites=(site,)), "toy2", "both register", "'toy'")


def test_two_methods_with_one_name(fewstep, install, tmp_path):
    site = install(tmp_path / "site", "double", {"plugin.py": CARDS.format(name="skip")})
    refused(fewstep("list", sites=(site,)), "toy", "double", "'skip'")


def test_a_method_whose_module_is_missing(fewstep, install, tmp_path):
    site = install(tmp_path / "site", "hollow", {"plugin.py": CARDS.format(name="hollow")})
    refused(fewstep("bench", "hollow", "--model", "toy-net", "--task", "walk", sites=(site,)), "No module named 'x'")


def test_folders_that_are_no_model(fewstep, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(fewstep("bench", "skip", "--model", "empty"), "empty", "not a model folder")


def test_a_truncated_model(fewstep, tmp_path):
    from fewstep import load
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).save_pretrained(tmp_path / "llama")
    weights = tmp_path / "llama/model.safetensors"
    whole = weights.read_bytes()
    assert load(str(tmp_path / "llama")).weights == "pretrained"
    weights.write_bytes(whole[: len(whole) // 2])
    refused(fewstep("run", "skip", "--model", "llama", "--prompt", "x"), "llama", "damaged")
    assert weights.read_bytes() == whole[: len(whole) // 2]


@pytest.mark.parametrize("place", ["results", "results/below"])
def test_results_that_cannot_be_written_are_found_out_first(fewstep, tmp_path, place):
    (tmp_path / "results").write_text("a file\n")
    run = fewstep(*BENCH, "--results", place)
    refused(run, "results")
    assert run.stdout == "" and (tmp_path / "results").read_text() == "a file\n"


def test_a_report_that_cannot_be_written(fewstep, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/walk.jsonl").write_text(json.dumps(ROW) + "\n")
    refused(fewstep("report", "--html", "results/walk.jsonl/out.html"), "walk.jsonl")


def test_a_quality_that_is_no_number_is_named_and_not_recorded(fewstep, tmp_path):
    refused(fewstep(*BENCH, "--nan", "1", "--repeats", "2"), "quality['size'] is nan in walk, dense, repeat 2")
    assert not (tmp_path / "results/walk.jsonl").exists()


def test_a_dirty_checkout_is_refused_in_one_sentence(fewstep, tmp_path):
    me = "-c", "user.name=me", "-c", "user.email=me@here"
    for words in (["init", "-q"], [*me, "commit", "-qm", "one", "--allow-empty"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    (tmp_path / "code.py").write_text("1\n")
    run = fewstep(*BENCH)
    refused(run, "differ from commit", "--allow-dirty")
    assert run.stdout == "" and not (tmp_path / "results").exists()


def test_a_red_gate_gives_no_speed_up(fewstep, tmp_path):
    run = fewstep("bench", "liar", "--model", "toy-net", "--task.length", "8", "--repeats", "1")
    assert run.returncode == 1
    assert run.stderr == "fewstep: no speed-up for liar: its identity setting differs from the dense model\n"
    assert "RED (differs by up to" in run.stdout and "speed-up is reported" in run.stdout
    assert "forward speed-up" not in run.stdout
    rows = [json.loads(line) for line in (tmp_path / "results/walk.jsonl").read_text().splitlines()]
    assert {row["method"] for row in rows} == {"dense", "liar"}
    assert all("baseline" not in row for row in rows)


def heed_signals() -> None:
    """Undo what a shell's ``&`` or ``nohup`` around the tests would hand down: signals that are ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def interrupted(
    environment: dict[str, str], folder: Path, until: str, endless: int, number: int = signal.SIGINT
) -> tuple[int, str, str]:
    """Exit code and output of a benchmark that gets a signal once it has printed a line holding `until`."""
    command = [sys.executable, "-m", "fewstep", *BENCH, "--endless", str(endless)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, env=environment, preexec_fn=heed_signals, **pipes) as process:
        said = ""
        for line in process.stdout:
            said += line
            if until in line:
                process.send_signal(number)
                break
        rest, errors = process.communicate()
    return process.returncode, said + rest, errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_keeps_what_is_finished(environment, tmp_path, number):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/walk.jsonl").write_text("")
    code, said, errors = interrupted(environment(), tmp_path, "repeat 1: skip", endless=1, number=number)
    assert (code, errors) == (130, "fewstep: interrupted\n")
    rows = [json.loads(line) for line in (tmp_path / "results/walk.jsonl").read_text().splitlines()]
    assert f"{len(rows)} rows of 1 finished repeat added" in said
    assert {row["method"] for row in rows} == {"dense", "skip"} and {row["params"]["repeats"] for row in rows} == {1}
    assert [row["metric"] for row in rows].count("forward_speedup") == 1


def test_ctrl_c_before_the_first_pair_leaves_nothing(environment, tmp_path):
    code, _, errors = interrupted(environment(), tmp_path, "warm-up: skip", endless=0)
    assert (code, errors) == (130, "fewstep: interrupted\n")
    assert list((tmp_path / "results").iterdir()) == []


def test_text_that_the_terminal_cannot_show_is_replaced(environment, tmp_path):
    command = [sys.executable, "-m", "fewstep", "list"]
    env = environment(PYTHONIOENCODING="ascii")
    listed = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True)
    assert listed.returncode == 0 and b"toy-net" in listed.stdout


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing(environment, tmp_path, closed):
    command = f"{sys.executable} -m fewstep bench skpi {closed}"
    ended = subprocess.run(command, shell=True, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-"])
def test_a_run_with_closed_streams_still_runs(environment, tmp_path, closed):
    command = f"{sys.executable} -m fewstep run skip --model toy-net --prompt x {closed}"
    ended = subprocess.run(command, shell=True, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_closed_standard_input_is_said_where_it_is_read(tmp_path):
    code = "from fewstep.data.files import read_text\nread_text('-')"
    ended = subprocess.run(f'{sys.executable} -c "{code}" <&-', shell=True, capture_output=True, text=True)
    assert "standard input cannot be read: it is closed; give a file instead" in ended.stderr


@pytest.mark.parametrize("plain", [True, False])
def test_no_color_is_heeded_by_help(environment, tmp_path, plain):
    """On a terminal, where there would be colours and bold letters."""
    import os
    import pty

    ours, theirs = pty.openpty()
    env = environment(TERM="xterm-256color", **({"NO_COLOR": "1"} if plain else {}))
    command = [sys.executable, "-m", "fewstep", "run", "skip", "--help"]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        try:
            while part := os.read(ours, 65536):
                said += part
        except OSError:  # the other end is closed
            pass
        os.close(ours)
    assert process.returncode == 0 and b"--keep" in said
    assert (b"\x1b[" not in said) is plain


def test_more_memory_than_there_is_is_one_line(fewstep, install, tmp_path):
    files = {
        "plugin.py": CARDS.format(name="huge").replace("x:X", "huge.x:X"),
        "x.py": "import torch\ntorch.empty(1 << 50)\n",
    }
    site = install(tmp_path / "site", "huge", files)
    refused(fewstep("show", "huge", sites=(site,)), "needs more memory than there is: 4,194,304.0 GiB were asked for")


def test_a_fault_inside_a_method_is_one_line_with_a_way_to_see_more(fewstep, install, tmp_path):
    faulty = "class X:\n    def __init__(self): raise KeyError('lost')\n"
    files = {
        "plugin.py": CARDS.format(name="faulty").replace("x:X", "faulty.x:make"),
        "x.py": "make = 1 / 0\n" + faulty,
    }
    site = install(tmp_path / "site", "faulty", files)
    refused(fewstep("show", "faulty", sites=(site,)), "`fewstep show faulty` failed: ZeroDivisionError", "TRACEBACK=1")
    shown = fewstep("show", "faulty", sites=(site,), FEWSTEP_TRACEBACK="1")
    assert "Traceback" in shown.stderr and shown.returncode == 2
