import json
import os
import subprocess
import sys

import pytest

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def run(smollm2):
    """``fewstep run slim-infer`` as a user runs it."""

    def call(*words, stdin=b""):
        command = [sys.executable, "-m", "fewstep", "run", "slim-infer", "--model", "smollm2-135m", *words]
        return subprocess.run(command, input=stdin, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})

    return call


def test_an_answer_about_a_document(run, tmp_path):
    document, output = tmp_path / "book.txt", tmp_path / "answer.json"
    document.write_text("Paris is the capital of France. " + "The weather was fine that day. " * 120)
    done = run("--prompt-file", str(document), "--prompt", QUESTION, "--max-new-tokens", "8", "--output", str(output))
    assert done.returncode == 0, done.stderr
    said, saved = done.stdout.decode(), json.loads(output.read_text())
    assert "Paris" in saved["answer"] and saved["answer"].strip() in said
    assert saved["method"] == "slim-infer" and saved["fields"]["query_span"][0] < 0
    kept = saved["prompt tokens kept, by segment"]
    assert kept[0] == saved["prompt tokens"] > 4 * 0.9 * kept[1] and "time to first token" in said


def test_the_document_may_come_from_standard_input(run):
    done = run("--prompt-file", "-", "--prompt", QUESTION, "--max-new-tokens", "6", stdin="Ça va à Paris.".encode())
    assert done.returncode == 0 and b"Paris" in done.stdout


@pytest.mark.parametrize(
    ("words", "stdin", "message"),
    [
        (["--prompt", " "], b"", "prompt is empty"),
        (["--prompt-file", "-", "--prompt", "x"], b"caf\xe9", "not UTF-8"),
        (["--prompt-file", "missing.txt", "--prompt", "x"], b"", "missing.txt"),
        (["--prompt-file", "-", "--prompt", "x"], b"word " * 9000, "8192"),
        (["--prompt", "x", "--output", "no/such/folder/a.json"], b"", "no/such/folder"),
        (["--prompt", "x", "--keep", "7"], b"", "keep=7"),
    ],
    ids=["empty", "latin-1", "missing", "too-long", "unwritable", "bad-field"],
)
def test_bad_input_is_one_line_and_exit_code_2(run, words, stdin, message):
    done = run(*words, stdin=stdin)
    lines = done.stderr.decode().strip().splitlines()
    assert done.returncode == 2
    assert message in lines[-1] and lines[-1].startswith("fewstep: ") and b"Traceback" not in done.stderr
