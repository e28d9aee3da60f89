"""Check the documentation: links have targets, files are valid, commands and fields exist."""

import functools
import pathlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from typing import Any

import click
import pytest
import yaml

from docs.reading import ROOT, SHELL, Block, anchors, blocks, command_lines, inline_code, links, name_of, pages
from finetune_api.cli import main as finetune
from finetune_api.crd import custom_resource_definition
from finetune_api.files import check_files, read_jobs
from finetune_client.cli import cli as plugin

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
PAGES = pages()
OUTSIDE = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "charts/finetune-operator/README.md"]
# Other programs that the shell blocks start. They may not be installed where these tests run.
OTHER_PROGRAMS = {
    "cd", "cosign", "curl", "docker", "export", "gh", "git", "helm", "kind", "kubectl", "open", "pip", "promtool", "python",
    "sha256sum", "sudo", "vim",
}  # fmt: skip
each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def test_the_site_builds_in_strict_mode_and_loads_nothing_from_other_hosts(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    script, style = (
        r'<(?:script|img|iframe)\b[^>]*\bsrc="(https?:[^"]+)',
        r'<link\b[^>]*rel="stylesheet"[^>]*href="(https?:[^"]+)',
    )
    loaded = re.compile(f"{script}|{style}")
    for path in tmp_path.rglob("*.html"):
        assert not loaded.findall(path.read_text(encoding="utf-8")), path.name


@pytest.mark.parametrize(
    "name", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "charts/finetune-operator/README.md"]
)
def test_links_in_the_files_outside_docs_have_targets(name: str) -> None:
    page = ROOT / name
    for link in links(page):
        target, _, anchor = link.partition("#")
        path = (page.parent / target) if target else page
        assert path.exists(), f"{name}: {link}"
        if anchor:
            assert anchor in anchors(path), f"{name}: {link}"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_valid(example: pathlib.Path) -> None:
    result = check_files([example])
    assert not result.problems, result.problems
    assert result.found == len(read_jobs(example)) > 0


@each_page
def test_every_job_in_the_documents_is_valid(page: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for block in blocks(page):
        if re.search(r"^kind: FineTuneJob$", block.text, re.MULTILINE):
            assert block.language == "yaml", f"{block.place}: mark it as yaml"
            file = tmp_path / "job.yaml"
            file.write_text(block.text, encoding="utf-8")
            result = check_files([file])
            assert not result.problems, f"{block.place}: {[problem.message for problem in result.problems]}"
            assert result.found, block.place


@each_page
def test_every_yaml_block_is_valid_yaml(page: pathlib.Path) -> None:
    for block in blocks(page):
        if block.language == "yaml" and "…" not in block.text:
            list(yaml.safe_load_all(block.text))


@each_page
def test_every_command_in_a_block_exists(page: pathlib.Path) -> None:
    for block in blocks(page):
        if block.language not in SHELL:
            continue
        for words in command_lines(block):
            if found := find_checker(words):
                check, arguments = found
                problem = check(arguments, True)
                assert problem is None, f"{block.place}: {' '.join(words)}: {problem}"
            elif block.language:
                assert words[0] in OTHER_PROGRAMS, f"{block.place}: these tests do not know the program {words[0]}"


@each_page
def test_every_command_in_a_sentence_exists(page: pathlib.Path) -> None:
    for code in inline_code(page):
        for words in command_lines(Block("bash", code, name_of(page))):
            if found := find_checker(words):
                check, arguments = found
                problem = check(arguments, False)
                assert problem is None, f"{name_of(page)}: `{code}`: {problem}"


@each_page
def test_the_documents_install_this_distribution_and_no_other(page: pathlib.Path) -> None:
    """The distribution has another name than the command."""
    name = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
    found = re.findall(r"pip install[^\n]*?['\" ]([A-Za-z0-9_.-]+)\[", page.read_text(encoding="utf-8"))
    assert set(found) <= {name, "."}


@each_page
def test_every_named_field_exists(page: pathlib.Path) -> None:
    schema, values = schema_of_the_resource()["properties"], chart_values()
    for code in inline_code(page):
        match = re.match(r"([A-Za-z]+)((?:\.[A-Za-z]+(?:\[\])?)+)(?=$|[:= ])", code)
        if match is None or pathlib.PurePath(match[0]).suffix in {".json", ".jsonl", ".md", ".py", ".yaml"}:
            continue
        first, name = match[1], f"{name_of(page)}: {match[0]}"
        if first in {"spec", "status"}:
            assert has_field(match[0]), name
        elif {first} & {*schema["spec"]["properties"], *schema["status"]["properties"], *values}:
            # A field without the prefix spec or status, or a value of the chart.
            known = has_field(f"spec.{match[0]}") or has_field(f"status.{match[0]}") or has_value(values, match[0].split("."))
            assert known, name


@each_page
def test_every_upgrade_keeps_the_values_and_knows_new_defaults(page: pathlib.Path) -> None:
    for line in page.read_text(encoding="utf-8").splitlines():
        assert not line.startswith("helm upgrade") or "--reset-then-reuse-values" in line, f"{name_of(page)}: {line}"


@each_page
def test_every_chart_value_that_a_command_sets_exists(page: pathlib.Path) -> None:
    values = chart_values()
    for block in blocks(page):
        for key in re.findall(r"--set(?:-file|-string|-json)? ([A-Za-z.]+)", block.text):
            assert has_value(values, key.split(".")), f"{block.place}: --set {key}"


@functools.cache
def chart_values() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((ROOT / "charts/finetune-operator/values.yaml").read_text(encoding="utf-8"))
    return values


def has_value(values: Any, path: list[str]) -> bool:
    """Return whether the values have this path. An empty mapping in the values allows any keys."""
    for part in path:
        if values == {}:
            return True
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


@functools.cache
def schema_of_the_resource() -> dict[str, Any]:
    schema: dict[str, Any] = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def has_field(path: str) -> bool:
    schema = schema_of_the_resource()
    for part in path.replace("[]", "").split("."):
        schema = schema.get("items", schema)
        if "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields"):
            return True
        if part not in schema.get("properties", {}):
            return False
        schema = schema["properties"][part]
    return True


def test_the_workflows_have_minimal_permissions_and_call_existing_targets() -> None:
    for path in sorted((ROOT / ".github/workflows").glob("*.yml")):
        workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert workflow["permissions"] == {"contents": "read"}, f"{path.name}: set further permissions on the job that needs them"
        for name, job in workflow["jobs"].items():
            assert "uses" in job or job["timeout-minutes"] <= 120, f"{path.name}: {name} needs timeout-minutes of at most 120"
            for step in job.get("steps", []):
                if "uses" in step:
                    assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]), step["uses"]
                if step.get("uses", "").startswith("actions/checkout@"):
                    assert step["with"]["persist-credentials"] is False, f"{path.name}: {name}"
                script = step.get("run", "")
                assert "${{" not in script, f"{path.name}: {name}: pass expressions through env"
                for words in command_lines(Block("bash", script, path.name)):
                    assert words[0] != "make" or check_make(words) is None, f"{path.name}: {' '.join(words)}"


# --- commands: each checker returns a sentence that says what is wrong, or None ---------------------------------------


def find_checker(words: list[str]) -> tuple[Callable[[list[str], bool], str | None], list[str]] | None:
    """Return the checker of a command, and its arguments; None for other programs."""
    program, rest = pathlib.PurePath(words[0]).name, words[1:]
    if program == "kubectl" and rest[:1] == ["finetune"]:
        return functools.partial(check_click, plugin), rest[1:]
    if program == "make":
        return lambda arguments, _whole: check_make(arguments), rest
    group = {"finetune": finetune, "kubectl-finetune": plugin}.get(program)
    return (functools.partial(check_click, group), rest) if group else None


def check_click(group: click.Group, arguments: list[str], whole: bool) -> str | None:
    """Check a command of a click group. whole: parse all arguments; if False, check only the command's name and its options."""
    if not arguments:
        return None
    name, *arguments = arguments
    if name.startswith("-"):
        return None if name in {"--help", "--version"} else "no such option"
    with click.Context(group) as context:
        command = group.get_command(context, name)
        if command is None:
            return "no such command"
        if not whole:
            known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
            missing = [word for word in arguments if word.startswith("--") and word.partition("=")[0] not in {*known, "--help"}]
            return f"no such option: {missing[0]}" if missing else None
        try:
            command.make_context(name, list(arguments), parent=context)
        except click.exceptions.Exit:
            return None  # --help
        except click.UsageError as error:
            return error.format_message()
    return None


@functools.cache
def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def check_make(arguments: list[str]) -> str | None:
    targets = [word for word in arguments if word != "make" and not re.match(r"[A-Z_]+=", word)]
    missing = [word for word in targets if word not in make_targets()]
    return f"no such target: {missing[0]}" if missing else None
