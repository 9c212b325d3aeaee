"""A LaTeX document as PDF, where `pdflatex` is installed."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SECONDS = 60
MARK = b"lconvnet tables"
INSTALL = "install it (Debian: apt-get install texlive-latex-base texlive-latex-recommended)"


class NoPdfError(RuntimeError):
    """The document could not be compiled; the message says why and what to do."""


def compile_pdf(document: str) -> bytes:
    """Return the PDF of a LaTeX document, the same bytes for the same document.

    It is compiled in a temporary folder, without the shell and without access to files elsewhere. Raises `NoPdfError`
    where `pdflatex` is absent, takes longer than a minute, or reports an error.
    """
    program = shutil.which("pdflatex")
    if program is None:
        raise NoPdfError(f"pdflatex is not installed; {INSTALL}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "table.tex").write_text(document, encoding="utf-8")
        _run(program, folder)
        return (folder / "table.pdf").read_bytes()


def _run(program: str, folder: Path) -> None:
    command = [program, "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    # Fixed dates: equal documents give equal files.
    paranoid = {"openin_any": "p", "openout_any": "p", "SOURCE_DATE_EPOCH": "0", "FORCE_SOURCE_DATE": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **paranoid},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NoPdfError(f"pdflatex took more than {SECONDS} seconds; compile table.tex yourself") from None
    if done.returncode or not (folder / "table.pdf").exists():
        raise NoPdfError(f"pdflatex failed ({_first_error(done.stdout)}); compile table.tex yourself to see more")


def _first_error(output: bytes) -> str:
    lines = output.decode(errors="replace").splitlines()
    return next((line for line in lines if line.startswith("!")), f"{len(lines)} lines of output")
