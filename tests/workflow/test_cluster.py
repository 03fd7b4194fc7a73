"""When the tests' own Slurm refuses to start: it must never touch one that is already there."""

from __future__ import annotations

import cluster
import pytest


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of root's without a Slurm; yields its /etc/slurm."""
    monkeypatch.setattr(cluster.os, "geteuid", lambda: 0)
    monkeypatch.setattr(cluster, "process_names", lambda: iter(["bash", "python3"]))
    monkeypatch.setattr(cluster, "ETC", tmp_path)
    return tmp_path


def test_a_machine_without_a_slurm_is_taken(machine):
    cluster.refuse_foreign_slurm()


def test_settings_that_a_killed_test_left_are_no_hindrance(machine):
    for name, text in (
        ("slurm.conf", cluster.slurm_conf(machine, "host")),
        ("gres.conf", cluster.gres_conf(machine, "host")),
    ):
        (machine / name).write_text(text, encoding="utf-8")
    cluster.refuse_foreign_slurm()


def test_the_settings_of_a_slurm_that_is_there_are_left_alone(machine):
    (machine / "slurm.conf").write_text("ClusterName=ours\n", encoding="utf-8")
    with pytest.raises(cluster.Unavailable, match="has a Slurm of its own"):
        cluster.refuse_foreign_slurm()


def test_a_slurm_that_runs_is_left_alone(machine, monkeypatch):
    monkeypatch.setattr(cluster, "process_names", lambda: iter(["bash", "slurmd"]))
    with pytest.raises(cluster.Unavailable, match=r"runs a Slurm already \(slurmd\)"):
        cluster.refuse_foreign_slurm()


def test_without_root_nothing_starts(machine, monkeypatch):
    monkeypatch.setattr(cluster.os, "geteuid", lambda: 1000)
    with pytest.raises(cluster.Unavailable, match="needs root"):
        cluster.refuse_foreign_slurm()


def test_packages_that_cannot_be_installed_are_named(monkeypatch):
    monkeypatch.setattr(cluster.shutil, "which", lambda program: None)
    with pytest.raises(cluster.Unavailable, match="slurm-wlm and munge are missing"):
        cluster.install()


def test_everything_listens_on_loopback_only(tmp_path):
    lines = cluster.slurm_conf(tmp_path, "host").splitlines()
    settings = dict(line.split("=", 1) for line in lines if "=" in line)
    assert settings["SlurmctldHost"] == "host(127.0.0.1)"
    nodes = [line for line in lines if line.startswith("NodeName=")]
    assert nodes
    assert all("NodeAddr=127.0.0.1" in line for line in nodes)
    assert settings["CommunicationParameters"].split(",") == ["NoInAddrAny", "NoCtldInAddrAny"]
