"""Publishing with the hub's real client to a stand-in for the hub."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from support import hub_stand_in, hub_upload
from support.hub_upload import TOKEN, Hub
from support.paths import ROOT

from training.__main__ import main
from training.publish import checkpoint_files

SAMPLE = """
import json, sys
from hgt_infer import Generator
for model in sys.argv[1:]:
    with Generator(model, device="cpu") as generator:
        print(json.dumps(generator("My dream is", num_return_sequences=2, seed=1, max_new_tokens=8)))
"""


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """The checkpoint among things that must not be published."""
    folder = tmp_path / "goose"
    shutil.copytree(trained, folder)
    for name in ("tweets.js", "optimizer.pt", "pytorch_model.bin", "training_args.bin", ".env", "notes.txt"):
        (folder / name).write_text("secret")
    for name in ("wandb", "checkpoint-5", "tensorboard"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_text("secret")
    (folder / "loss.png").unlink()
    (folder / "loss.png").symlink_to("/etc/passwd")
    return folder


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_upload.serve() as hub:
        yield hub


def hub_environment(folder: Path, endpoint: str) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return environment | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "hub-home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HGT_INFER_CACHE": str(folder / "artifacts"),
    }


def publish(
    checkpoint: Path, *options: str, endpoint: str, token: str | None = TOKEN
) -> tuple[int, str, str]:
    """Publish and return the exit status, what was printed, and the errors."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("HF_"):
                patch.delenv(name)
        if token:
            patch.setenv("HF_TOKEN", token)
        patch.setattr(constants, "ENDPOINT", endpoint)
        patch.setattr(constants, "HF_TOKEN_PATH", str(checkpoint.parent / "no token"))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(["publish", str(checkpoint), "--repo", "me/goose", *options])
    return status, out.getvalue(), err.getvalue()


def failure(published: tuple[int, str, str]) -> str:
    status, out, err = published
    lines = err.strip().splitlines()
    assert status == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert TOKEN not in out + err
    return lines[0]


@pytest.mark.integration
def test_files_arrive_in_one_commit_and_make_a_model(checkpoint: Path, hub: Hub, tmp_path: Path) -> None:
    arguments = ["publish", str(checkpoint), "--repo", "me/goose", "--private"]
    environment = hub_environment(tmp_path, hub.endpoint) | {"HF_TOKEN": TOKEN}
    command = [sys.executable, "-m", "training", *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert f"published as {hub.endpoint}/me/goose" in result.stdout
    assert hub.num_commits == 1
    [(name, files)] = hub.repositories.items()
    # A user's own repository is made by its name alone.
    assert name in ("me/goose", "goose")
    for path, content in files.items():
        if path != "README.md" and not path.startswith("onnx/"):
            assert content == (checkpoint / path).read_bytes()
    assert {"model.safetensors", "config.json", "tokenizer.json", "dataset.json", "metrics.jsonl"} <= set(
        files
    )
    assert not [path for path in files if b"secret" in files[path]]
    assert "loss.png" not in files
    card = files["README.md"].decode()
    assert 'Generator("me/goose")' in card
    assert str(tmp_path) not in card

    downloaded = tmp_path / "downloaded"
    for path, content in files.items():
        (downloaded / path).parent.mkdir(parents=True, exist_ok=True)
        (downloaded / path).write_bytes(content)
    with hub_stand_in.serve({"me/goose": downloaded}) as served:
        command = [sys.executable, "-c", SAMPLE, "me/goose", str(downloaded / "onnx")]
        environment = hub_environment(tmp_path, served.endpoint)
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    texts = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(texts[0]) == 2
    assert texts[0] == texts[1]


def test_a_second_publication_is_a_second_commit(checkpoint: Path, hub: Hub) -> None:
    for number in (1, 2):
        assert publish(checkpoint, "--no-onnx", endpoint=hub.endpoint)[0] == 0
        assert hub.num_commits == number


def test_what_an_earlier_commit_had_and_this_one_has_not_goes_from_the_repository(
    checkpoint: Path, hub: Hub
) -> None:
    (checkpoint / "preview.png").write_bytes(b"a picture")
    assert publish(checkpoint, endpoint=hub.endpoint)[0] == 0
    [files] = hub.repositories.values()
    assert {"onnx/model.onnx", "preview.png", "model.safetensors"} <= set(files)
    theirs = {
        "notes.md": b"",
        "pytorch_model.bin": b"",
        "wandb/model.safetensors": b"",
        ".gitattributes": b"",
    }
    files |= {"model-00001-of-00002.safetensors": b"", **theirs}
    (checkpoint / "preview.png").unlink()
    assert publish(checkpoint, "--no-onnx", endpoint=hub.endpoint)[0] == 0
    assert hub.num_commits == 2
    assert set(files) == {*checkpoint_files(checkpoint), "README.md", *theirs}


def test_a_public_repository_is_not_published_to_as_a_private_one(checkpoint: Path, hub: Hub) -> None:
    assert publish(checkpoint, "--no-onnx", endpoint=hub.endpoint)[0] == 0
    error = failure(publish(checkpoint, "--no-onnx", "--private", endpoint=hub.endpoint))
    assert "me/goose is there already, and is public" in error
    assert hub.num_commits == 1


def test_a_card_that_the_hub_rejects_is_one_line(checkpoint: Path, hub: Hub) -> None:
    hub.failures["/api/validate-yaml"] = (400, None)
    assert "the hub did not take me/goose" in failure(publish(checkpoint, "--no-onnx", endpoint=hub.endpoint))
    assert hub.num_commits == 0


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"handle": 1, "users": [{"handle": "../x"}]}'])
def test_records_that_are_none_are_one_line(
    checkpoint: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / "dataset.json").write_text(content)
    assert main(["publish", str(checkpoint), "--repo", "me/goose", "--dry-run", "--no-onnx"]) == 2
    assert "no card can be made of" in capsys.readouterr().err


def test_without_records_there_is_no_card(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / "training.json").unlink()
    assert main(["publish", str(checkpoint), "--repo", "me/goose", "--dry-run", "--no-onnx"]) == 0
    out = capsys.readouterr().out
    assert "without a card: there is no dataset.json and training.json" in out
    assert "README.md" not in out


def test_a_dry_run_lists_files_and_asks_nobody(checkpoint: Path, hub: Hub) -> None:
    status, out, err = publish(checkpoint, "--dry-run", endpoint=hub.endpoint, token=None)
    assert status == 0, err
    assert hub.requests == []
    listed = [line.split()[-1] for line in out.splitlines()]
    assert {"model.safetensors", "onnx/model.onnx", "README.md"} <= set(listed)
    assert not {"tweets.js", "pytorch_model.bin", ".env", "loss.png"} & set(listed)
    size = f"{(checkpoint / 'model.safetensors').stat().st_size:,}  model.safetensors"
    assert size in out
    assert "dry run: nothing was sent to me/goose" in out


@pytest.mark.parametrize(
    ("where", "status", "code", "message"),
    [
        ("/api/repos/create", 401, None, "401"),
        ("/api/repos/create", 403, None, "403"),
        ("/preupload/", 404, "RepoNotFound", "404"),
        ("/lfs/", 500, None, "500"),
        ("/commit/", 500, None, "500"),
    ],
)
def test_what_the_hub_refuses_is_one_line_and_no_commit(
    checkpoint: Path, hub: Hub, where: str, status: int, code: str | None, message: str
) -> None:
    hub.failures[where] = (status, code)
    error = failure(publish(checkpoint, "--no-onnx", endpoint=hub.endpoint))
    assert "the hub did not take me/goose" in error
    assert message in error
    assert hub.num_commits == 0


def test_a_wrong_token_and_a_hub_that_is_not_there_are_one_line(checkpoint: Path, hub: Hub) -> None:
    assert "401" in failure(publish(checkpoint, "--no-onnx", endpoint=hub.endpoint, token="hf_wrong"))
    assert "did not take" in failure(publish(checkpoint, "--no-onnx", endpoint="http://127.0.0.1:9"))


def test_without_a_token_nobody_is_asked(checkpoint: Path, hub: Hub) -> None:
    error = failure(publish(checkpoint, "--no-onnx", endpoint=hub.endpoint, token=None))
    assert "set HF_TOKEN, or use `hf auth login`" in error
    assert hub.requests == []


@pytest.mark.parametrize(
    "repo",
    [
        *("goose", "a/b/c", "me/../x", "me/a b", "/x", "me/" + "x" * 97, "me/a--b", ""),
        *("me/goose.git", "me/goose-", "me/goose.", "me/-goose"),
    ],
)
def test_a_name_that_is_none_is_an_error(
    trained: Path, repo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", str(trained), "--repo", repo, "--dry-run"]) == 2
    assert "is not a name of the hub, of the form user/name" in capsys.readouterr().err


def test_a_folder_that_is_no_checkpoint_names_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert main(["publish", str(tmp_path), "--repo", "me/goose"]) == 2
    assert "is not a checkpoint: it has no tokenizer.json, model.safetensors" in capsys.readouterr().err
    assert main(["publish", str(tmp_path / "gone"), "--repo", "me/goose"]) == 2
    assert "is not a folder" in capsys.readouterr().err
