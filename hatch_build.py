"""The package page is the README: relative links become absolute, or plain text where no `Source` URL is declared."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)]+)\)")


def package_page(readme: str, source: str | None) -> str:
    """The README for a page that lies outside the repository; `source` is the address of its files."""

    def outside(link: re.Match[str]) -> str:
        picture, text, path = link.groups()
        if source:
            return f"{picture}[{text}]({source.rstrip('/')}/{path})"
        return "" if picture else f"{text} (`{path}`)" if path not in text else f"`{path}`"

    return _LINK.sub(outside, readme)


class PackagePage(MetadataHookInterface):
    def update(self, metadata: dict) -> None:
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        source = metadata.get("urls", {}).get("Source")
        metadata["readme"] = {"content-type": "text/markdown", "text": package_page(readme, source)}
