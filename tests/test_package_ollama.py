"""Ollama: the Modelfile's template renders what the chat template renders, letter by letter, or is refused."""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from jinja2 import TemplateError as JinjaError
from transformers.utils.chat_template_utils import _compile_jinja_template

from warmline.config.reading import load_recipe
from warmline.data.sources.bundled import bundled
from warmline.data.sources.reading import Rejections
from warmline.data.tokenize import TemplateError
from warmline.model.tiny import CHATML
from warmline.package.go_template import Layout, go_template, layout_of, written
from warmline.package.ollama import modelfile
from warmline.package.subject import PackageError

from .go_templates import GoTemplateError, execute, ollama
from .toys import PHI3

DIALOGPT = load_recipe("dialogpt-medium-counsel").model.chat_template or ""
# Qwen2.5's for messages without tools: a system message of its own where none is given.
QWEN = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}{%- endif %}{%- for message in messages %}"
    "{%- if (message.role == 'user') or (message.role == 'system' and not loop.first) or (message.role == 'assistant') %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
ZEPHYR = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
THINKS = CHATML.replace("'<|im_start|>assistant\n' }}{% endif", "'<|im_start|>assistant\n<think></think>' }}{% endif")
EXPRESSIBLE = {"chatml": CHATML, "phi3": PHI3, "dialogpt": DIALOGPT, "qwen": QWEN, "zephyr": ZEPHYR, "thinks": THINKS}
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML


def rendered(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """As `warmline.data.tokenize.render` does, without a tokenizer."""
    special = {"bos_token": "<s>", "eos_token": "<|endoftext|>"}
    try:
        return _compile_jinja_template(template).render(messages=messages, add_generation_prompt=True, **special)
    except JinjaError as error:
        raise TemplateError(str(error)) from None


def layout(template: str) -> Layout:
    return layout_of(lambda messages: rendered(template, messages))


def conversations(count: int = 20) -> list[list[dict[str, str]]]:
    """Real ones of the bundled corpus, cut to end on the user, every second with a system message, some with odd texts."""
    odd = [
        "  spaces  ",
        "{{ .Content }}",
        "{% raw %}",
        'quotes " and """',
        "line\n\n\nbreaks\n",
        "tab\tand\u00a0space",
        "😀",
    ]
    found = []
    draw = random.Random(7)
    for talk in bundled(None, "train", Rejections()):
        turns = [{"role": turn.role, "content": turn.text} for turn in talk.turns]
        length = 1 + 2 * draw.randrange((len(turns) + 1) // 2)
        turns = turns[:length]
        if len(found) % 3 == 0:
            turns[draw.randrange(length)]["content"] = odd[len(found) % len(odd)]
        if len(found) % 2:
            turns = [{"role": "system", "content": "You are a warm,\nhonest companion."}, *turns]
        found.append(turns)
        if len(found) == count:
            break
    return found


def test_twenty_conversations_of_many_lengths() -> None:
    talks = conversations()
    assert len(talks) == 20
    assert {talk[-1]["role"] for talk in talks} == {"user"}
    assert len({len(talk) for talk in talks}) > 3
    assert {talk[0]["role"] for talk in talks} == {"system", "user"}


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_the_go_template_renders_what_the_chat_template_renders(name: str) -> None:
    template = go_template(layout(EXPRESSIBLE[name]))
    for talk in conversations():
        assert ollama(template, talk) == rendered(EXPRESSIBLE[name], talk)
    words = re.findall(r"\{\{-?\s*(\w*)", template)
    assert {*words} <= {"", "if", "else", "end", "range"}, "the subset that the evaluator above knows"


def test_chatml_as_people_would_write_it() -> None:
    assert go_template(layout(CHATML)) == (
        '{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n'
        "{{ end }}{{ end }}<|im_start|>assistant\n"
    )


def test_what_opens_an_action_in_go_is_quoted() -> None:
    odd = Layout("", {"user": "{{user}}", "assistant": "\u200b"}, {"user": "", "assistant": "}}"}, "{{{")
    template = go_template(odd)
    talk = [{"role": role, "content": "hi"} for role in ("user", "assistant", "user")]
    assert ollama(template, talk) == written(odd, talk) == "{{user}}hi\u200bhi}}{{user}}hi{{{"
    assert all(letter.isprintable() or letter == "\n" for letter in template)


def test_a_template_without_system_messages_has_no_branch_for_them() -> None:
    template = go_template(layout(NO_SYSTEM))
    assert "system" not in template
    talk = conversations()[2]
    assert ollama(template, talk) == rendered(CHATML, talk)


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("message['content']", "message['content'] | trim"),
        CHATML.replace("message['content']", "message['content'] | upper"),
        CHATML.replace("message['role'] +", "(loop.index | string) +"),
        # earlier answers are left out, as models that think do
        CHATML.replace("message['content']", "('...' if message['role'] == 'assistant' else message['content'])"),
        CHATML.replace("'<|im_start|>assistant\n' }}{% endif", "(messages | length | string) }}{% endif"),
        "{% if messages | length > 4 %}{{ raise_exception('too long') }}{% endif %}" + CHATML,
        # Llama 2's: the system message stands inside the first user's
        "{% for message in messages %}{% if message['role'] == 'user' %}[INST] {% if loop.first and false %}{% endif %}"
        "{{ message['content'] }} [/INST]{% elif message['role'] == 'system' %}{% else %}{{ message['content'] + eos_token }}"
        "{% endif %}{% endfor %}",
    ],
)
def test_a_template_that_ollama_cannot_express_is_refused_with_what_to_do(template: str) -> None:
    with pytest.raises(PackageError) as caught:
        layout(template)
    assert "\n" not in str(caught.value)
    assert "--to vllm" in str(caught.value)
    assert "--to gguf" in str(caught.value)


def parsed(text: str) -> dict[str, Any]:
    """A Modelfile by its instructions, as Ollama's parser/parser.go cuts it: three quotes hold everything between them."""
    found: dict[str, Any] = {"PARAMETER": []}
    pattern = re.compile(r'([A-Z]+) (?:(\w+) )?(?:"""(.*?)"""|"([^"\n]*)"|([^\n"]+))\n', re.DOTALL)
    at = 0
    while at < len(text):
        match = pattern.match(text, at)
        assert match is not None, text[at:]
        name, key, value = match[1], match[2], next(part for part in match.groups()[2:] if part is not None)
        if name == "PARAMETER":
            found[name].append((key, value))
        else:
            found[name] = value
        at = match.end()
    return found


def test_the_modelfile_holds_template_system_parameters_and_stops() -> None:
    text = modelfile(layout(CHATML), ["<|im_end|>", "<|endoftext|>"], "Listen.\nBe kind.", "./model", 4096)
    found = parsed(text)
    assert found["FROM"] == "./model"
    assert found["SYSTEM"] == "Listen.\nBe kind."
    assert found["PARAMETER"] == [
        ("temperature", "0.7"),
        ("top_p", "0.9"),
        ("top_k", "0"),
        ("min_p", "0"),
        ("repeat_penalty", "1"),
        ("num_predict", "192"),
        ("num_ctx", "4096"),
        ("stop", "<|im_end|>"),
        ("stop", "<|endoftext|>"),
    ]
    for talk in conversations():
        assert ollama(found["TEMPLATE"], talk) == rendered(CHATML, talk)


@pytest.mark.parametrize("prompt", ['say """ this', '"quoted"', "a\u00a0b", "bell\a"])
def test_a_system_prompt_that_a_modelfile_would_alter_is_refused(prompt: str) -> None:
    with pytest.raises(PackageError, match="the system prompt"):
        modelfile(layout(CHATML), [], prompt, "./model", 4096)


# ---- the evaluator itself ----


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("a {{- .X -}}  b", "a1b"),
        ("a {{ .X }} b", "a 1 b"),
        ("{{ if .Empty }}yes{{ else }}no{{ end }}", "no"),
        ("{{ range .L }}[{{ . }}]{{ end }}", "[p][q]"),
        ("{{ range .None }}x{{ else }}none{{ end }}", "none"),
        ('{{ if eq .X "2" }}two{{ else if eq .X "1" }}one{{ else }}other{{ end }}!', "one!"),
        ('{{ "{{\\n" }}', "{{\n"),
    ],
)
def test_the_evaluator_does_what_go_documents(template: str, expected: str) -> None:
    assert execute(template, {"X": "1", "Empty": "", "L": ["p", "q"], "None": []}) == expected


@pytest.mark.parametrize(
    "template", ["{{ if .X }}", "{{ end }}", "{{ .X", "{{ trim .X }}", "{{ if .X }}a{{ else }}b{{ else }}c{{ end }}"]
)
def test_the_evaluator_refuses_what_go_refuses(template: str) -> None:
    with pytest.raises(GoTemplateError):
        execute(template, {"X": "1"})


def test_golden_rendering_of_each_recipe_family() -> None:
    """The same short conversation in every family, written out by hand."""
    talk = [
        {"role": "system", "content": "Listen."},
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "I'm sad."},
    ]
    golden = {
        CHATML: "<|im_start|>system\nListen.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nHello."
        "<|im_end|>\n<|im_start|>user\nI'm sad.<|im_end|>\n<|im_start|>assistant\n",
        PHI3: "<|system|>\nListen.<|end|>\n<|user|>\nHi.<|end|>\n<|assistant|>\nHello.<|end|>\n<|user|>\nI'm sad.<|end|>\n"
        "<|assistant|>\n",
        DIALOGPT: "Listen.<|endoftext|>Hi.<|endoftext|>Hello.<|endoftext|>I'm sad.<|endoftext|>",
    }
    for template, expected in golden.items():
        assert ollama(go_template(layout(template)), talk) == expected
