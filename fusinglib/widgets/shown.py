"""What the playground shows, as HTML: every name is escaped."""

import html
import re

from fusinglib.evaluation import playground, tables
from fusinglib.evaluation.tables import scored
from fusinglib.fusion.compatibility import Report
from fusinglib.fusion.geometry import Updates
from fusinglib.study.settings import FusePlayground
from fusinglib.widgets import pictures

COPY = "navigator.clipboard.writeText(this.nextElementSibling.innerText)"
"""Copies the text below a button."""


def chips(texts: list[str], kind: str = "") -> str:
    return "".join(f"<span class='fusinglib-chip {kind}'>{html.escape(t)}</span>" for t in texts)


def report(report: Report | str, updates: Updates | None) -> str:
    """Problems and notes of the report as chips, then the report itself."""
    if isinstance(report, str):
        return chips([report])
    far = [f"{name}: {note}" for name, note in updates.out_of_line().items()] if updates else []
    bad = chips([*report.problems, *far], "bad")
    head = f"<details><summary>{html.escape(report.rows()[0]['value'])}</summary>"
    return f"{bad}{chips(report.notes)}{head}{report._repr_html_()}</details>"


def of_start(made: pictures.Start) -> str:
    """How far a base model is from the pretrained one, in words."""
    name = html.escape(made.name)
    return f"<p>{name}: its update is {100 * made.norm:.2g} % of the pretrained norm.</p>"


def norms(made: pictures.Start, updates: Updates) -> str:
    """The norms of the models' updates and their cosines with that of a base model, as HTML."""
    rows = "".join(
        f"<tr><th>{html.escape(str(name))}</th><td>{100 * norm / updates.origin:.2g} %</td>"
        f"<td>{cosine:.2f}</td></tr>"
        for name, norm, cosine in zip(updates.names, updates.norms, made.cosines, strict=True)
    )
    head = f"<tr><td></td><th>norm</th><th>cosine with {html.escape(made.name)}</th></tr>"
    return f"<table>{head}{rows}</table>"


def dimmed(text: str, current: bool) -> str:
    """Results; those of another choice are marked so."""
    if current or not text:
        return text
    return f"<div class='fusinglib-old'><p><i>of the previous choice:</i></p>{text}</div>"


def outcome(results, right, plan) -> str:
    """The verdict, then accuracies as a picture and in numbers, and differences, as HTML; `right`
    are the `playground.answers`."""
    verdict = html.escape(playground.verdict(results, results["target"].iloc[0], right))
    table = playground.accuracies(results, right)
    runs = {
        base: list(100 * scored(rows).dropna())
        for base, rows in results.groupby("base", sort=False)
    }
    picture = pictures.arms(table, runs)
    shown = [table, playground.differences(results, right)]
    numbers = [_table(one) for one in shown]
    fused = next(row["run"].parents[0] for row in plan.rows if row["base"] == "fused")
    how = ", ".join(f"{k} {v}" for k, v in fused.settings.items() if k != "with_pretrained")
    models = ", ".join(results[results["base"] == "fused"]["sources"].iloc[0])
    said = [f"<p>{html.escape(sentence)}</p>" for sentence in playground.collapses(results)]
    return (
        f"<p><b>{verdict}</b></p>{picture}<p>Fused: {html.escape(models)} "
        f"({html.escape(how or 'method mean')})</p>{''.join(said)}{''.join(numbers)}"
    )


def _table(table) -> str:
    """A table whose headings stand over their columns; the corner is no heading."""
    text = tables.show(table).rename_axis(None).to_html(border=0, col_space="6em")
    return re.sub(r"<th[^>]*></th>", "<td></td>", text)


def evaluations(histories) -> str:
    """The numbers of the learning curves, as HTML."""
    return histories.to_html(index=False, float_format="{:.3g}".format, border=0)


def copyable(settings: FusePlayground) -> str:
    """Code and parameter file that repeat the choice, each with a button that copies it."""
    head = "# fusinglib run fuse_playground --params FILE\n"
    texts = {
        "Python": playground.call(settings),
        "YAML": head + playground.parameter_file(settings),
    }
    parts = [
        f'<button onclick="{COPY}">copy as {kind}</button><pre>{html.escape(text)}</pre>'
        for kind, text in texts.items()
    ]
    return "".join(parts)
