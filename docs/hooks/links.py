"""Rewrites links that leave docs/ (examples, charts, code) to the repository, because the site contains only the documents."""

import logging
import os
import pathlib
import re
from typing import Any

# This is a child of mkdocs' logger, so with --strict its warnings fail the build.
log = logging.getLogger("mkdocs.hooks.links")
LINK = re.compile(r"\]\((\.\.?/[^)#\s]+)(#[^)\s]*)?\)")
BRANCH = "main"


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Rewrite the links of a page. Log a warning for a link to a missing file."""
    docs = pathlib.Path(config.docs_dir).resolve()
    source = docs / page.file.src_uri

    def replace(match: re.Match[str]) -> str:
        target = pathlib.Path(os.path.normpath(source.parent / match[1]))
        if target.is_relative_to(docs):
            return match[0]  # mkdocs checks it
        if not target.exists():
            log.warning("%s links to %s, which does not exist", page.file.src_uri, match[1])
        kind = "tree" if target.is_dir() else "blob"
        return f"]({config.repo_url}/{kind}/{BRANCH}/{target.relative_to(docs.parent).as_posix()}{match[2] or ''})"

    return LINK.sub(replace, markdown)
