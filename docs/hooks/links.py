"""Links that leave docs/ (examples, charts, code) lead to the repository: the site has the documents alone."""

import logging
import os
import pathlib
import re
from typing import Any

# A child of mkdocs' own logger: with --strict its warnings fail the build.
log = logging.getLogger("mkdocs.hooks.links")
LINK = re.compile(r"\]\((\.\.?/[^)#\s]+)(#[^)\s]*)?\)")
BRANCH = "main"


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Rewrite such links; one whose file is not there is a warning."""
    docs = pathlib.Path(config.docs_dir).resolve()
    source = docs / page.file.src_uri

    def replace(match: re.Match[str]) -> str:
        target = pathlib.Path(os.path.normpath(source.parent / match[1]))
        if target.is_relative_to(docs):
            return match[0]  # mkdocs looks at it itself
        if not target.exists():
            log.warning("%s links to %s, which is not there", page.file.src_uri, match[1])
        kind = "tree" if target.is_dir() else "blob"
        return f"]({config.repo_url}/{kind}/{BRANCH}/{target.relative_to(docs.parent).as_posix()}{match[2] or ''})"

    return LINK.sub(replace, markdown)
