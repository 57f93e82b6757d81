"""Executed notebooks as one page that opens offline."""

import datetime
import html
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter

from fusinglib.study.notebooks import outputs


def write(executed: list[Path], page: Path, coming: Sequence[str] = ()) -> None:
    """Write the findings, figures, verdicts and tables of executed notebooks as one HTML page.

    First what the first notebook found, with its sanity check and figure, then what the others
    found and the verdicts on the claims; then a section per notebook, with its tables folded.
    `coming` are the notebooks still to be executed.
    """
    books = {path.stem: nbformat.read(path, as_version=4) for path in executed}
    titles = {name: _title(book) for name, book in books.items()}
    links = [f'<a href="#{name}">{html.escape(title)}</a>' for name, title in titles.items()]
    top = ["<h1>Fusing: can finetuned models be turned into a better base model?</h1>"]
    top.append(f"<p>{html.escape(_made(list(books.values())))}</p>")
    if coming:
        names = ", ".join(name.replace("_", " ") for name in coming)
        top.append(f"<p><em>Still to come: {names}. Reload this page now and then.</em></p>")
    top.append(f"<nav>{' · '.join(links)}</nav>")
    verdicts = [
        f"<h3>{html.escape(titles[name])}</h3>\n<div class='wide'>{data['text/html']}</div>"
        for name, book in books.items()
        for cell, data in outputs(book)
        if cell.id == "claims"
    ]
    sections = [_section(name, titles[name], book) for name, book in books.items()]
    if verdicts:
        sections.insert(1, "<h2>The paper's claims</h2>\n" + "\n".join(verdicts))
    page.write_text("\n".join([PAGE, *top, *sections, "</body></html>"]), encoding="utf-8")


def _title(book: nbformat.NotebookNode) -> str:
    """The notebook's heading."""
    cell = next(cell for cell in book.cells if cell.source.startswith("# "))
    return cell.source.splitlines()[0].lstrip("# ")


def _made(books: list[nbformat.NotebookNode]) -> str:
    """When, on what, and from which data these notebooks were executed."""
    about = [book.metadata.get("papermill", {}) for book in books]
    seconds = sum(one.get("duration") or 0 for one in about)
    day = datetime.date.today().strftime("%-d %B %Y")
    version, torch = (importlib.metadata.version(name) for name in ("fusinglib", "torch"))
    said = (
        f"Executed on {day} in {max(seconds / 60, 1):.0f} min, without the runs that were finished "
        f"before, on {platform.system()} ({platform.machine()}, {os.cpu_count()} cores) with "
        f"fusinglib {version} and torch {torch}."
    )
    data = {one.get("parameters", {}).get("model", "miniworld") for one in about}
    if data == {"miniworld"}:
        return (
            f"{said} Data: the miniature world, which is generated text: no evidence about English."
        )
    return f"{said} Base model: {', '.join(sorted(data))}."


def _section(name: str, title: str, book: nbformat.NotebookNode) -> str:
    """What a notebook found and its first figure; all the rest folded."""
    said = [
        output["text"] for cell in book.cells if cell.id == "headline"
        for output in cell.outputs if "text" in output
    ]  # fmt: skip
    found = "".join(f"<p>{html.escape(line)}</p>" for text in said for line in text.splitlines())
    for output in (one for cell in book.cells for one in cell.get("outputs", [])):
        if output.output_type == "error":
            found += f"<p><b>Failed:</b> {html.escape(f'{output.ename}: {output.evalue}')}</p>"
    figure = ""
    for cell, data in outputs(book):
        if "image/png" in data:
            words = html.escape(f"{title}: figure")
            source = data["image/png"].replace("\n", "")
            figure = f'<img alt="{words}" src="data:image/png;base64,{source}">'
            cell.outputs = []
            break
    rest = f"<summary>all text, tables and figures</summary>\n{_body(name, book)}"
    return (
        f'<section id="{name}">\n<h2>{html.escape(title)}</h2>\n{found}\n{figure}\n'
        f"<details>{rest}\n</details></section>"
    )


def _body(name: str, book: nbformat.NotebookNode) -> str:
    """A notebook as HTML, without its code and the text that only introduces code."""
    book.cells = [cell for cell in book.cells if cell.id not in ABOUT_CODE]
    for cell, data in outputs(book):
        if cell.id == "settings":
            data["text/html"] = f"<details><summary>settings</summary>{data['text/html']}</details>"
    exporter = HTMLExporter(
        template_name="basic", exclude_input=True, exclude_input_prompt=True,
        exclude_output_prompt=True, exclude_anchor_links=True,
    )  # fmt: skip
    body, _ = exporter.from_notebook_node(book)
    return body.replace('id="cell-id=', f'id="{name}-')


ABOUT_CODE = (
    "parameters-text", "execute-text", "record", "headline", "widgets-text", "repeat-text",
    "repeat",
)  # fmt: skip
"""Cells that say nothing without the code or a kernel, and what stands above already."""

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Fusing: summary</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 sans-serif; max-width: 64em; margin: 2em auto; padding: 0 1em;
  color: light-dark(#222, #ddd); background: light-dark(#fff, #181818); }
a { color: light-dark(#0b57a4, #8ab4f8); }
nav { position: sticky; top: 0; padding: 0.4em 0; background: inherit; font-size: 14px; }
section { border-top: 1px solid #999; margin-top: 2em; scroll-margin-top: 4em; }
summary { cursor: pointer; }
img { max-width: 100%; background: #fff; border-radius: 4px; }
pre, .rendered_html, .jp-RenderedHTMLCommon, .wide { overflow-x: auto; max-width: 100%; }
table { border: none; border-collapse: collapse; font-size: 14px; margin: 1em 0; }
th, td { padding: 0.2em 0.6em; text-align: right; border-bottom: 1px solid #8886; }
</style></head><body>"""
"""How the page begins."""
