"""``python -m fastrnn.compiler.built_in``: writes the printed cells into the working tree that this module lies in."""

from __future__ import annotations

from pathlib import Path

from fastrnn.compiler.built_in import BUILT_IN, print_cpp, print_numba, print_triton
from fastrnn.compiler.built_in.pointwise import pointwise

ROOT: Path = Path(__file__).parents[3]


def files() -> dict[str, str]:
    """The text of each printed file, by its place in the tree."""
    cells = {mode: pointwise(cell) for mode, cell in BUILT_IN.items()}
    return {
        "csrc/cells-inl.h": print_cpp.print_file(cells),
        "csrc/cell_table.h": print_cpp.print_table(cells),
        "kernels/numba_printed.py": print_numba.print_file(cells),
        "kernels/triton_cells.py": print_triton.print_file(cells),
    }


def main() -> None:
    """Writes every file."""
    for place, text in files().items():
        (ROOT / place).write_text(text)


if __name__ == "__main__":
    main()
