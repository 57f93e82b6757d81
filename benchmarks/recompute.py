"""Recompute reports and figures from recorded rows, with today's code and without a single run.

    python benchmarks/recompute.py --params params/mini-worlds --results results/mini-worlds

Of every notebook that the folder of results has a CSV file of, the cells are executed on the
recorded rows in place of `study.run()`. What the cells tagged `report` say goes to `report.txt`,
which ends with the claims of all notebooks, corrected for their number; figures are redrawn. What
needs the models themselves (cosines of updates, lines between models, the planner's own runs) stays
as it was recorded.
"""

import argparse
import ast
import contextlib
import io
from pathlib import Path

import nbformat
import pandas as pd

from fusinglib.evaluation import claims, exploration, ranking, shrinkage, tables
from fusinglib.evaluation.figures import NotebookFigure
from fusinglib.study import parameters
from fusinglib.study.execution import read_results
from fusinglib.study.settings import EXPERIMENTS
from fusinglib.study.study import Study

SKIPPED = {"mean", "report", "widgets", "record"}
"""Cells that need models, or a page."""

ON_MODELS = {"loss_path", "seed_planner", "fuse_playground"}
"""Notebooks that need models, or a store."""

RUNS_OF = {"many_worlds": "family_table"}
"""Notebooks whose runs another one records."""


def said(source: str, names: dict) -> tuple[str, object]:
    """Execute a cell: what it prints, and the value of its last line."""
    *lines, last = ast.parse(source).body
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(ast.Module(lines, []), "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
        else:
            value = exec(compile(ast.Module([last], []), "cell", "exec"), names)
    return printed.getvalue().rstrip(), value


def recompute(name: str, options) -> tuple[str, pd.DataFrame | None]:
    """The report of one notebook, its figures drawn beside, and its verdicts."""
    results, params = options.results, options.params / f"{name}.yaml"
    rows = read_results(results / f"{RUNS_OF.get(name, name)}.csv")
    Study.run = lambda study: rows
    exploration.cells = lambda plan, store, results: rows
    ranking.with_costs = shrinkage.with_norms = lambda results, plan, store: results
    names, texts = {}, []
    for cell in nbformat.read(parameters.notebook(name), as_version=4).cells:
        if cell.cell_type != "code" or cell.id in SKIPPED:
            continue
        printed, value = said(cell.source, names)
        if cell.id == "parameters":
            names.update(parameters.choose(name, str(params), options.set))
        if isinstance(value, NotebookFigure):
            (results / f"{name}-{cell.id}.png").write_bytes(value._repr_png_())
        elif "report" in cell.metadata.get("tags", []):
            texts += [text for text in (printed, "" if value is None else repr(value)) if text]
    return "\n\n".join([name, *texts]), names.get("verdicts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params/mini-worlds"))
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[])
    parser.add_argument("--results", type=Path, default=Path("results/mini-worlds"))
    options = parser.parse_args()
    has = {
        name
        for name in EXPERIMENTS
        if (options.results / f"{RUNS_OF.get(name, name)}.csv").is_file()
        and (options.params / f"{name}.yaml").is_file()
    }
    found = [name for name in EXPERIMENTS if name in has - ON_MODELS]
    reports, verdicts = zip(*[recompute(name, options) for name in found], strict=True)
    together = claims.adjusted(pd.concat([table for table in verdicts if table is not None]))
    columns = ["claim", "scope", "verdict", "estimate", "low", "high", "p", "p adjusted",
               "raw verdict"]  # fmt: skip
    said = repr(tables.show(together[columns].reset_index(drop=True)))
    reports = [*reports, f"All claims together, corrected for their number (Holm)\n\n{said}"]
    (options.results / "report.txt").write_text("\n\n\n".join(reports) + "\n")


if __name__ == "__main__":
    main()
