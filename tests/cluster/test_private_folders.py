"""A private folder into which somebody still writes at its end is removed by the next sweep at the latest."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

from tune.cluster.private_folders import private_folder, remove_dead


def test_what_is_written_while_a_folder_is_removed_is_removed_by_the_next_sweep(tmp_path: Path) -> None:
    over = threading.Event()

    def write(folder: Path) -> None:
        for number in itertools.count():
            if over.is_set():
                return
            try:
                (folder / "r").mkdir(exist_ok=True)
                (folder / "r" / f"{number}.log").write_text("a dying process")
            except FileNotFoundError:
                continue

    with private_folder(str(tmp_path)) as folder:
        writer = threading.Thread(target=write, args=(folder,))
        writer.start()
    over.set()
    writer.join()
    remove_dead(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
