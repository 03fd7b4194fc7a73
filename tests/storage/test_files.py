"""Files appear whole or not at all, and one process at a time makes them."""

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.numpy import save_file

from minirec.errors import InputError
from minirec.storage import artefact, files, tensors
from minirec.storage.artefact import Provenance


def test_one_process_works_on_a_path_and_the_next_after_it(tmp_path):
    order, path = [], tmp_path / "work"
    with files.exclusive_lock(path):
        with pytest.raises(InputError, match=r"another process is making .*work; wait for it or end it"):
            files.exclusive_lock(path).__enter__()
        with files.exclusive_lock(tmp_path / "other"):
            order.append("other")
    for _ in range(2):
        with files.exclusive_lock(path):
            order.append("again")
    assert order == ["other", "again", "again"]
    assert not list(tmp_path.iterdir())


def test_many_that_wait_for_one_path_are_never_in_it_together(tmp_path):
    inside, most = [], []

    def work(_):
        with files.exclusive_lock(tmp_path / "work", wait=True):
            inside.append(1)
            time.sleep(0.001)
            most.append(len(inside))
            inside.pop()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(100)))
    assert most == [1] * 100


def test_the_ranks_of_one_training_do_not_lock_each_other_out(tmp_path, monkeypatch):
    ran = []

    @files.locked_stage("out", "checkpoints")
    def run(*, out):
        ran.append(out)

    with files.exclusive_lock(tmp_path / "checkpoints"):
        monkeypatch.setenv("RANK", "1")
        run(out=tmp_path / "adapter")
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(InputError, match=r"another process is making .*checkpoints"):
            run(out=tmp_path / "adapter")
    assert ran == [tmp_path / "adapter"]


def test_what_a_killed_process_of_this_machine_was_writing_is_removed_by_the_next(tmp_path):
    folder = tmp_path / "folder"
    code = "import os, signal, sys; from pathlib import Path; from minirec.storage.artefact import *\n"
    code += "with atomic_write(Path('file')) as a, atomic_folder(Path('folder'), Provenance('x')) as b:\n"
    code += "    a.touch(); (b / 'part').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    dead = sorted(tmp_path.iterdir())
    assert len(dead) == 2
    alive = tmp_path / f".file.{socket.gethostname()}.{os.getppid()}.part"
    elsewhere = tmp_path / dead[0].name.replace(socket.gethostname(), "elsewhere")
    other = tmp_path / dead[0].name.replace(".file.", ".file.2.")
    for path in (alive, elsewhere, other):
        path.touch()
    with files.atomic_write(tmp_path / "file") as partial:
        partial.touch()
    with artefact.atomic_folder(folder, Provenance("x")) as partial:
        (partial / "part").touch()
    assert set(tmp_path.iterdir()) == {alive, elsewhere, other, folder, tmp_path / "file"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_a_file_of_safetensors_can_be_read_by_those_who_can_read_other_new_files(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        tensors.write({"a": np.zeros(2)}, tmp_path / "a.safetensors", Provenance("x"))
        with artefact.atomic_folder(tmp_path / "folder", Provenance("x")) as partial:
            save_file({"a": np.zeros(2)}, partial / "a.safetensors")
    finally:
        os.umask(before)
    for file in (tmp_path / "a.safetensors", *(tmp_path / "folder").iterdir()):
        assert file.stat().st_mode & 0o777 == mode, file


def test_a_linked_file_of_the_user_keeps_its_mode(tmp_path):
    own = tmp_path / "own.safetensors"
    own.touch(0o600)
    with artefact.atomic_folder(tmp_path / "folder", Provenance("x")) as partial:
        os.link(own, partial / own.name)
    assert own.stat().st_mode & 0o777 == 0o600
