"""`lm_eval --model local-chat-completions` with a local task file against a served model, beside our own score."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from warmline.engine.scripted import ScriptedEngine
from warmline.evaluate.eq_bench import Answers, score
from warmline.evaluate.eq_bench_questions import MAX_NEW_TOKENS, Question, read_questions, request_for

from .servers import app_of, serving

NUM_QUESTIONS = 6
TASK = """
task: toy_eq_bench
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {rows}}}}}
output_type: generate_until
validation_split: validation
doc_to_text: prompt
doc_to_target: reference_answer_fullscale
process_results: !function utils.calculate_score_fullscale
generation_kwargs: {{do_sample: false, temperature: 0.0, max_gen_toks: {tokens}}}
metric_list:
  - {{metric: eqbench, aggregation: mean, higher_is_better: true}}
  - {{metric: percent_parseable, aggregation: mean, higher_is_better: true}}
"""


def answer_to(question: Question, number: int) -> str:
    """An answer in the form that is asked for; each is off by another amount, and one cannot be read."""
    if number == 2:
        return "I would rather talk about how they feel."
    pairs = zip(question.emotions, question.reference, strict=True)
    lines = [f"{name}: {min(10, max(0, round(value) + number))}" for name, value in pairs]
    return "\n".join(["First pass scores:", *lines, "Critique: fine.", "Revised scores:", *lines])


@pytest.mark.slow
@pytest.mark.real
def test_the_harness_scores_a_served_model_as_we_do(tmp_path: Path) -> None:
    root = os.environ.get("WARMLINE_DATA")
    if not root:
        pytest.skip("WARMLINE_DATA is not set")
    questions = read_questions(Path(root) / "eq-bench" / "eq_bench_v2_questions_171.json")[:NUM_QUESTIONS]
    answers = [answer_to(question, number) for number, question in enumerate(questions)]
    rows = [
        {
            "prompt": request_for(question, "lm-eval").messages[-1].content,
            "reference_answer_fullscale": repr(
                {f"emotion{at}": name for at, name in enumerate(question.emotions, start=1)}
                | {f"emotion{at}_score": str(value) for at, value in enumerate(question.reference, start=1)}
            ),
        }
        for question in questions
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    import lm_eval

    harness = Path(next(iter(lm_eval.__path__)))
    (tmp_path / "utils.py").write_bytes((harness / "tasks" / "eq_bench" / "utils.py").read_bytes())
    task = TASK.format(rows=tmp_path / "rows.jsonl", tokens=MAX_NEW_TOKENS["lm-eval"])
    (tmp_path / "toy_eq_bench.yaml").write_text(task, encoding="utf-8")
    with serving(app_of(ScriptedEngine(answers))) as url:
        command = [sys.executable, "-m", "lm_eval", "--model", "local-chat-completions", "--tasks", "toy_eq_bench"]
        command += ["--include_path", str(tmp_path), "--apply_chat_template", "--batch_size", "1"]
        command += ["--output_path", str(tmp_path / "out"), "--log_samples", "--model_args"]
        command += [f"model=m,base_url={url}/v1/chat/completions,num_concurrent=1,max_retries=1"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    [results] = (tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(results.read_text(encoding="utf-8"))["results"]["toy_eq_bench"]
    [samples] = (tmp_path / "out").rglob("samples_*.jsonl")
    logged = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    said = {questions[row["doc_id"]].id: row["resps"][0][0] for row in logged}
    assert len(said) == NUM_QUESTIONS
    ours = score(questions, Answers(said))
    assert theirs["eqbench,none"] == pytest.approx(ours.lm_eval, abs=1e-6)
    assert 0 < theirs["percent_parseable,none"] < 100
