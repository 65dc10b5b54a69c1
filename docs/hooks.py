"""What the site needs beside Markdown: the sources for the reference, and the pictures of results.

The root of the repository is the package, whatever the folder is called: its sources are copied to
`build/docs/recjax`, where the reference reads them without importing anything. Pages link to
pictures and sources outside `docs/`, as they do on any viewer of the repository: pictures are made
part of the site, and other such links lead to the repository, or become plain text if
`repo_url` is not set.
"""

from pathlib import Path
import re
import shutil

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "build" / "docs" / "recjax"
PACKAGES = ("kernels", "zoo", "train", "export")
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(((?:\.\./)+[^)\s]+)\)")


def on_startup(command, dirty):
    """Copies the sources to where the reference reads them."""
    shutil.rmtree(SOURCES, ignore_errors=True)
    SOURCES.mkdir(parents=True)
    for path in ROOT.glob("*.py"):
        shutil.copy(path, SOURCES)
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, SOURCES / package, ignore=shutil.ignore_patterns("__pycache__")
        )


def on_files(files, config):
    """Adds the pictures of results to the site."""
    for path in sorted((ROOT / "bench" / "results").rglob("*.png")):
        where = path.relative_to(ROOT / "bench").as_posix()
        files.append(File.generated(config, _picture(where), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Leads links out of `docs/` to where their targets are."""
    folder = (ROOT / "docs" / page.file.src_uri).parent
    above = "../" * page.file.src_uri.count("/")

    def lead(match):
        image, text, link = match.groups()
        target = (folder / link.partition("#")[0]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return match[0]
        if not target.exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {link}, which is not there.")
        where = target.relative_to(ROOT).as_posix()
        if image:
            return f"![{text}]({above}{_picture(where.removeprefix('bench/'))})"
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{where})"
        return text

    return _LINK.sub(lead, markdown)


def _picture(where):
    """Where a picture of `bench/results` stands in the site."""
    return f"pictures/{where.removeprefix('results/')}"
