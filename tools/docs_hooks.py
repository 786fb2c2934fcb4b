"""Hooks of `make docs`: pages from the repository's root, and Mermaid diagrams drawn while the site is built."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FROM_ROOT = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "README.md": "index.md"}


def on_config(config: Any) -> Any:
    """Have Mermaid blocks drawn by `drawn`."""
    fence = {"name": "mermaid", "class": "mermaid", "format": drawn}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the changelog and the page on contributing, which stand beside the README for readers of the repository."""
    from mkdocs.structure.files import File

    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        for source, page in FROM_ROOT.items():
            text = text.replace(f"]({source}", f"]({page}")
        files.append(File.generated(config, FROM_ROOT[name], content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links to the pages at the root lead to their copies in the site."""
    up = "../" * page.file.src_uri.count("/")
    pattern = r"\]\((?:\.\./)+(CHANGELOG|CONTRIBUTING|README)\.md"
    return re.sub(pattern, lambda found: f"]({up}{FROM_ROOT[found[1] + '.md']}", markdown)


def drawn(source: str, language: str, css_class: str, options: Any, md: Any, **others: Any) -> str:
    """A Mermaid diagram as an SVG inside the page: reading the site needs no script and no network."""
    from mermaidx import render

    return f'<div class="{css_class}">{render(source, theme="neutral").svg()}</div>'
