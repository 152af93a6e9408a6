"""Check the English of documents and code: length, long sentences, unclear phrases, dead links. check.sh runs it."""

import re
import subprocess
import sys
import tokenize
from pathlib import Path

from markdown_it import MarkdownIt

REPOSITORY = Path(__file__).resolve().parents[1]
PHRASES = re.compile(
    r"\b(what (?!if\b)|(that|those) of\b|those (that|which|who)\b|whose\b|is (said|told)\b|beside\b|anew\b|for want\b)",
    re.IGNORECASE,
)


def read_document(path: Path) -> tuple[list[str], list[str]]:
    """Paragraphs and table cells without code, and link targets."""
    tokens = MarkdownIt().enable("table").parse(path.read_text(encoding="utf-8"))
    parts = [token.children or [] for token in tokens if token.type == "inline"]
    texts = ["".join(part.content or " " for part in inline if part.type != "code_inline") for inline in parts]
    return texts, [str(part.attrs["href"]) for inline in parts for part in inline if part.type == "link_open"]


def read_code(path: Path) -> list[str]:
    """Comments and strings of a Python file."""
    kinds = (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))
    with tokenize.open(path) as file:
        return [token.string for token in tokenize.generate_tokens(file.readline) if token.type in kinds]


def main() -> int:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    paths = [REPOSITORY / name for name in listed.splitlines() if name != "tests/prose.py"]  # it has the phrases
    documents = {path: read_document(path) for path in paths if path.suffix == ".md"}
    texts = {path: parts for path, (parts, _) in documents.items()}
    texts |= {path: read_code(path) for path in paths if path.suffix == ".py"}
    guide = [path for path in documents if path.parent.name == "docs" or path == REPOSITORY / "README.md"]
    sentences = [s for path in guide for text in texts[path] for s in re.split(r"(?<=[.!?:;]) ", text)]
    long = [sentence for sentence in sentences if len(sentence.split()) > 30]
    hits = [(path, match) for path, parts in texts.items() for text in parts for match in PHRASES.finditer(text)]
    links = [(path, target.split("#")[0]) for path, (_, targets) in documents.items() for target in targets]
    dead = [(path, to) for path, to in links if ":" not in to and not (path.parent / to).exists()]
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    limits = {
        "lines of README.md": (len(readme.splitlines()), 150),
        "words of README.md": (len(readme.split()), 1100),
        "% long sentences in README.md and docs/": (100 * len(long) / len(sentences), 5),
        "unclear phrases in 1,000 words": (1000 * len(hits) / len(" ".join(sum(texts.values(), [])).split()), 0.5),
        "dead links": (len(dead), 0),
    }
    print(*(f"{title}: {found:.4g} (at most {most})" for title, (found, most) in limits.items()), sep="\n")
    places = [(path, repr(match.string[match.start() :][:60])) for path, match in hits]
    print(*(f"{path.relative_to(REPOSITORY)}: {place}" for path, place in dead + places), *long, sep="\n")
    return any(found > most for found, most in limits.values())


if __name__ == "__main__":
    sys.exit(main())
