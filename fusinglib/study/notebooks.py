"""Notebooks in batch: papermill with progress, and the outputs as files."""

import base64
import logging
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines

from fusinglib.errors import InputError, StoreError
from fusinglib.progress import MARK, Line
from fusinglib.study.parameters import notebook


def run(name: str, chosen: dict, output: Path) -> Path:
    """Execute the notebook `name` into the folder `output`, and return the executed copy.

    Its figures (`<name>-<cell id>.png`) and its tidy results (`<name>.csv`) are written beside it.
    Raises `InputError` if the notebook does or if `output` cannot be written, and `RuntimeError` if
    it fails otherwise.
    """
    executed = output / f"{name}.ipynb"
    try:
        output.mkdir(parents=True, exist_ok=True)
        _execute(name, executed, chosen)
        _write_outputs(name, executed, output)
    except OSError as error:
        raise InputError(
            f"output {output} cannot be written ({error}): free some space, or choose another "
            "--output; finished runs are kept in the store"
        ) from error
    return executed


def _execute(name: str, executed: Path, chosen: dict) -> None:
    papermill_engines.register("fusinglib", WatchedEngine)
    logging.getLogger("papermill").setLevel(logging.ERROR)  # names have been checked
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # Ctrl-C is reported once, elsewhere
    try:
        papermill.execute_notebook(
            notebook(name), executed, chosen,
            engine_name="fusinglib", kernel_name="python3", progress_bar=False,
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        if error.ename in (InputError.__name__, StoreError.__name__):
            raise InputError(error.evalue) from error
        raise RuntimeError(f"{error.ename}: {error.evalue} (see {executed})") from error
    except DeadKernelError as error:
        raise RuntimeError(
            "the notebook's kernel died; finished runs are kept: run the same command again"
        ) from error


def report(executed: Path) -> str:
    """The output of the cells tagged `report` of an executed notebook, as plain text."""
    texts = [
        output["text"].rstrip() if "text" in output else output["data"]["text/plain"]
        for cell in nbformat.read(executed, as_version=4).cells
        if "report" in cell.metadata.get("tags", [])
        for output in cell.get("outputs", [])
        if "text" in output or "data" in output
    ]
    return "\n\n".join(texts)


def missing(executed: Path) -> int:
    """How many results an executed notebook reports as missing."""
    notebook = nbformat.read(executed, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum(output.get("metadata", {}).get("missing", 0) for output in outputs)


def failures(executed: Path) -> list[str]:
    """The lines with which an executed notebook reports failed runs."""
    notebook = nbformat.read(executed, as_version=4)
    texts = [
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    ]
    lines = [line for text in texts for line in text.splitlines()]
    return [line for line in lines if line.startswith("failed: ")]


class WatchedClient(PapermillNotebookClient):
    """Shows the notebook's progress where the command was started."""

    line: Line

    def process_message(self, msg, cell, cell_index):
        """Show what is marked as progress; handle the message as always."""
        mark = msg["content"].get("metadata", {}).get(MARK)
        if mark:
            self.line.show(msg["content"]["data"]["text/plain"], last=mark == "last")
        return super().process_message(msg, cell, cell_index)


class WatchedEngine(NBClientEngine):
    """Papermill's own engine with a `WatchedClient`."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **kwargs):
        """Execute the notebook (called by papermill)."""
        client = WatchedClient(
            nb_man, kernel_name=kernel_name, startup_timeout=120,
            extra_arguments=["--log-level=CRITICAL"],
        )  # fmt: skip
        client.line = Line()
        try:
            return client.execute()
        finally:
            client.line.close()


def outputs(notebook: nbformat.NotebookNode):
    """Every output with data of an executed notebook, with its cell."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "data" in output:
                yield cell, output["data"]


def _write_outputs(name: str, executed: Path, folder: Path) -> None:
    for cell, data in outputs(nbformat.read(executed, as_version=4)):
        if "image/png" in data:
            image = base64.b64decode(data["image/png"])
            (folder / f"{name}-{cell.id}.png").write_bytes(image)
        if "text/csv" in data:
            (folder / f"{name}.csv").write_text(data["text/csv"])
