import json

from fewstep.families.causal_lm import Ask
from fewstep.testing.cli import run_command_line
from fewstep_slim_infer import SlimInfer

QUESTION = "What is the capital of France?"


def test_an_answer_about_a_document(smollm2, tmp_path, capsys):
    document, output = tmp_path / "book.txt", tmp_path / "answer.json"
    document.write_text("Paris is the capital of France. " + "The weather was fine that day. " * 120)
    Ask(prompt=QUESTION, prompt_file=str(document), max_new_tokens=8, output=output)(smollm2, SlimInfer(preset="fast"))
    said, saved = capsys.readouterr().out, json.loads(output.read_text())
    assert "Paris" in saved["answer"] and saved["answer"].strip() in said
    assert saved["method"] == "slim-infer" and saved["fields"]["query_span"][0] < 0
    kept = saved["prompt tokens kept, by segment"]
    assert kept[0] == saved["prompt tokens"] > 4 * 0.9 * kept[1] and "time to first token" in said


def test_a_short_prompt_is_kept_whole_and_the_unchanged_model_answers_beside(smollm2, tmp_path, capsys):
    output = tmp_path / "answer.json"
    Ask(prompt=QUESTION, max_new_tokens=8, output=output, compare=True)(smollm2, SlimInfer())
    said, saved = capsys.readouterr().out, json.loads(output.read_text())
    assert "nothing was dropped" in said, "the prompt is shorter than the budget"
    assert said.index("unchanged model:") < said.index("slim-infer:") and said.count("Paris") == 2
    assert saved["unchanged model"]["time to first token (s)"] > 0
    ratio = saved["time to first token, against the unchanged model"]
    assert ratio.endswith("x") and ratio in said


def test_a_bad_field_is_one_line_and_exit_code_2(tmp_path):
    done = run_command_line(
        ["run", "slim-infer", "--model", "smollm2-135m", "--prompt", QUESTION, "--keep", "7"], tmp_path
    )
    assert done.returncode == 2 and "keep=7" in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("fewstep: ")


def test_show_says_what_the_preset_was_chosen_on_and_measured_on(tmp_path):
    said = " ".join(run_command_line(["show", "slim-infer"], tmp_path, env={"COLUMNS": "400"}).stdout.split())
    assert "chosen on the tuning half" in said and "measured on the held-out half" in said and "fast" in said
