"""A hook of mkdocs: the pages that stand beside docs/, README as the home page."""

import re
from pathlib import Path

from mkdocs.structure.files import File

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}


def on_files(files, config):
    """Adds the pages, with links that lead to where the site has their targets."""
    root = Path(config.config_file_path).parent
    for source, page in PAGES.items():
        text = re.sub(r"\]\(docs/", "](", (root / source).read_text(encoding="utf-8"))
        for name, moved in PAGES.items():
            text = text.replace(f"]({name}", f"]({moved}")
        files.append(File.generated(config, page, content=text))
    return files
