"""Makes the documentation site of README.md and docs/: `make site`, or `python docs/site.py`.

The pages are those of the repository, where they link to each other and to its files by relative paths. For
the site they are copied, and links are set to where their targets are there: the README is its first page,
and a file outside docs/ that a page links to becomes a page of its own. zensical then makes HTML, and fails
at any link or anchor that leads nowhere.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = Path("build/site/pages")
LINK = re.compile(r"""(?:(?<=\]\()|(?<=src=")|(?<=srcset="))(?!https?:|mailto:|#)([^)#\s"]+)""")
"""The path of a link to a file of the repository, or of a picture in HTML, without an anchor."""
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".json": "json", ".sbatch": "bash"}


def page_of(file: Path) -> Path:
    """Where a file of the repository is on the site, by its path from the root."""
    if file == Path("README.md"):
        return Path("index.md")
    if file.parts[0] == "docs" and file.suffix != ".py":
        return file.relative_to("docs")
    if (ROOT / file).is_dir():
        return Path("files") / file / "index.md"
    name = file.name if file.suffix == ".md" else f"{file.name}.md"
    return Path("files") / file.parent / name


def linked(file: Path, text: str) -> set[Path]:
    """The files of the repository that a page links to, by their paths from the root.

    Raises ValueError at a link that leads nowhere, or out of the repository.
    """
    found = set()
    for target in LINK.findall(text):
        path = Path(os.path.normpath(file.parent / target))
        if path.parts[0] == ".." or not (ROOT / path).exists():
            raise ValueError(f"{file}: there is no {target}")
        found.add(path)
    return found


def as_page(file: Path) -> str:
    """A file of the repository as a Markdown page, its links as on the site."""
    path = ROOT / file
    if path.is_dir():
        entries = sorted(each.name for each in path.iterdir() if each.suffix == ".md")
        return f"# {file}\n\n" + "".join(f"- [{name}]({name})\n" for name in entries)
    text = path.read_text()
    if file.suffix != ".md":
        return f"# {file.name}\n\n`{file}`\n\n````{LANGUAGES.get(file.suffix, 'text')}\n{text}````\n"
    here = page_of(file).parent

    def on_the_site(match: re.Match[str]) -> str:
        target = page_of(Path(os.path.normpath(file.parent / match[1])))
        return Path(os.path.relpath(target, here)).as_posix()

    return LINK.sub(on_the_site, text)


def write_pages(folder: Path) -> list[Path]:
    """Writes every page of the site into a folder, as Markdown; the files that they are of."""
    todo = [Path("README.md"), *(path.relative_to(ROOT) for path in sorted((ROOT / "docs").glob("*.md")))]
    done: list[Path] = []
    while todo:
        file = todo.pop()
        if file in done:
            continue
        done.append(file)
        if file.suffix in (".svg", ".png"):
            page, content = folder / page_of(file), (ROOT / file).read_bytes()
        else:
            page, content = folder / page_of(file), as_page(file).encode()
        if (ROOT / file).is_dir():
            todo += [path.relative_to(ROOT) for path in (ROOT / file).glob("*.md")]
        elif file.suffix == ".md":
            todo += linked(file, (ROOT / file).read_text())
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_bytes(content)
    return done


def main() -> int:
    """Makes the site anew; 1 where zensical finds a mistake."""
    os.chdir(ROOT)
    shutil.rmtree("build/site", ignore_errors=True)
    print(f"{len(write_pages(PAGES))} pages")
    made = subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict"], check=False)
    if made.returncode == 0:
        print("open build/site/html/index.html")
    return min(made.returncode, 1)


if __name__ == "__main__":
    sys.exit(main())
