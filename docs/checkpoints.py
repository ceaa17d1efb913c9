"""The page of the checkpoints as the site shows it: below its text, the layouts and words that are read now."""

from typing import Any

from s_resnet.frontend.weights.architectures import HEADS, QUESTIONS
from s_resnet.frontend.weights.layouts import LAYOUTS

PAGE = "reference/checkpoints.md"


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """MkDocs calls this for every page."""
    if page.file.src_uri != PAGE:
        return markdown
    return f"{markdown}\n## Layouts\n\n{layouts()}\n## Words\n\n{words()}"


def layouts() -> str:
    """A row for each layout, in the order in which they are tried."""
    rows = ["| layout | a name in it | networks | words assumed | words to choose |", "|---|---|---|---|---|"]
    for layout in LAYOUTS:
        assumed, open_ = _words([*layout.usual, *layout.fixed]), _words(layout.asks)
        examples = "<br>".join(f"`{name}`" for name in layout.example.split(", "))
        rows.append(f"| {layout.name} | {examples} | {layout.networks} | {assumed} | {open_} |")
    return "\n".join(rows) + "\n"


def words() -> str:
    """A row for each word."""
    rows = ["| word | what the network does | instead |", "|---|---|---|"]
    for question in QUESTIONS:
        for choice in question.choices:
            rows.append(f"| `{choice.word}` | {choice.says} | {_words(sorted(question.words - {choice.word}))} |")
    rows += [f"| `{word}` | {says} | {_words(sorted(HEADS.keys() - {word}))} |" for word, says in HEADS.items()]
    return "\n".join(rows) + "\n"


def _words(words: Any) -> str:
    return ", ".join(f"`{word}`" for word in words)
