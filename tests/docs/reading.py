"""Parse the documentation: its code blocks, commands, links and headings."""

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[2]
# Generated from the code; other tests cover them.
GENERATED = {"api.md", "findings.md", "metrics.md", "reasons.md"}
FENCE = re.compile(
    r"^(?P<indent> *)(?P<mark>```+)(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)(?P=mark)[ ]*$", re.MULTILINE | re.DOTALL
)
SHELL = {"", "bash", "sh", "console"}


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced code block. text: without the indentation. place: the file and line where it begins."""

    language: str
    text: str
    place: str


def pages() -> list[pathlib.Path]:
    """Return every document that is not generated."""
    found = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    found += [ROOT / "charts/finetune-operator/README.md"]
    return found + sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name not in GENERATED)


def name_of(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: pathlib.Path) -> Iterator[Block]:
    text = path.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        indent = len(match["indent"])
        lines = [line[indent:] for line in match["text"].splitlines()]
        yield Block(match["language"], "\n".join(lines) + "\n", f"{name_of(path)}:{text.count(chr(10), 0, match.start()) + 1}")


def without_blocks(path: pathlib.Path) -> str:
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def inline_code(path: pathlib.Path) -> list[str]:
    return [" ".join(match.split()) for match in re.findall(r"`([^`]+)`", without_blocks(path))]


def command_lines(block: Block) -> Iterator[list[str]]:
    """Yield each command of a block as words. Pipes and separators split a line; comments and leading variables are removed."""
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # the line is output with an apostrophe, not a command
            continue
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set("|&;"):
                if command:
                    yield command
                command = []
            elif command or not re.fullmatch(r"[A-Z_]+=.*", word):
                command.append(word)


def anchors(path: pathlib.Path) -> set[str]:
    """Return the anchors of the headings, as GitHub builds them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", without_blocks(path), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)).strip().lower().replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(name)
    return found


def links(path: pathlib.Path) -> list[str]:
    """Return the targets of links and images, without those on other hosts."""
    text = without_blocks(path)
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]
