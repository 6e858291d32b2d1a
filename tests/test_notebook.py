"""The notebook in docs/ runs from its first cell to its last, in a real kernel, and shows sound and pictures."""

import warnings

import nbformat
from paths import ROOT

with warnings.catch_warnings(action="ignore"):
    from nbclient import NotebookClient

PATH = ROOT / "docs" / "babble.ipynb"


def list_outputs(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """Return what each code cell shows, by kind."""
    return [
        sorted({kind for output in cell.outputs for kind in output.get("data", {output.output_type: None})})
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_the_notebook_runs_and_shows_what_is_stored_in_it() -> None:
    stored = nbformat.read(PATH, as_version=4)
    notebook = nbformat.from_dict({**stored, "cells": [dict(cell) for cell in stored.cells]})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "docs")}}).execute()
    assert list_outputs(notebook) == list_outputs(stored)
    players = [output for cell in notebook.cells for output in cell.get("outputs", []) if "text/html" in output["data"]]
    assert len(players) == 4
    assert all("data:audio/wav;base64," in output["data"]["text/html"] for output in players)


def test_nothing_of_the_machine_is_stored_in_it() -> None:
    text = PATH.read_text()
    assert "/root" not in text
    assert "/home" not in text
    assert str(ROOT) not in text
