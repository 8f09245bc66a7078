"""A run recorded with Weights & Biases: a preprocessing run and a training run, linked by four artifacts.

Offline without a key. The folder `wandb/` of the checkpoint then has both runs, and `wandb sync OUTPUT/wandb`
uploads them later, with artifacts' files from where they lie: nothing is on the disk twice, and tweet files
and checkpoint have to be in their places by then.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.tracking.run import FOLDERS, TrackedRun, values

PROJECT = "hgt-infer"  # WANDB_PROJECT goes before it
INIT_TIMEOUT_S = 30
MAX_NAME = 100  # characters; W&B takes 128


class WandbRuns:
    """The two runs. Their ids are kept in wandb/runs.json: every start goes on with the same ones.

    Offline, a start replaces what earlier ones left, and logs the run from its first step.

    Args:
        run: what is recorded.
        links: gets the runs' addresses, where they have some.
    """

    def __init__(self, run: TrackedRun, *, links: dict[str, str]) -> None:
        self._run = run
        self._folder = run.folder / "wandb"
        self._links = links
        self._offline = False
        self._train: Any = None
        self._first_step = 0

    @property
    def failures(self) -> tuple[type[Exception], ...]:
        """Its own errors, and those of the connection to its service and of the disk."""
        import wandb
        from wandb.sdk import mailbox

        service = (mailbox.MailboxClosedError, mailbox.HandleAbandonedError)
        return (wandb.errors.Error, OSError, *service)

    def start(self) -> None:
        """Record the dataset as a run of its own, and begin the training run."""
        import wandb

        self._settings = wandb.Settings(
            silent=True,
            console="off",
            symlink=False,
            init_timeout=INIT_TIMEOUT_S,
            # Nothing of this machine: its name, user, program, code, packages, load.
            host="",
            username="",
            program="",
            x_executable="",
            save_code=False,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        mode = wandb.setup(self._settings).settings.mode
        if mode == "disabled":
            print("Weights & Biases: not recorded, WANDB_MODE is disabled")
            return
        self._offline = mode in ("offline", "dryrun") or not self._has_key()
        ids = self._begin_folder()
        self._record_dataset(ids["preprocess"])
        self._train = self._init(ids["train"], "train", config=dict(self._run.config))
        self._first_step = int(self._train.step)
        self._use(self._dataset_artifact())
        self._use(self._base_artifact())
        if not self._offline:
            print(f"Weights & Biases: {self._links['train']}", flush=True)

    def log(self, entry: Mapping[str, float]) -> None:
        """Log a step; one that the server has already is passed over."""
        if self._train is not None and entry["step"] >= self._first_step:
            self._train.log(values(entry), step=int(entry["step"]))

    def log_model(self, training: Mapping[str, Any]) -> None:
        """Log the checkpoint's files as an artifact, and training.json as configuration and summary."""
        if self._train is None:
            return
        self._train.config.update(dict(training), allow_val_change=True)
        self._train.summary.update(dict(training["evaluation"]))
        model = self._artifact(f"{self._run.handle}-model", "finetuned-model", training["evaluation"])
        for path in sorted(self._run.folder.rglob("*")):
            name = path.relative_to(self._run.folder)
            if path.is_file() and name.parts[0] not in FOLDERS:
                self._add(model, path, str(name))
        self._train.log_artifact(model)

    def close(self, *, failed: bool) -> None:
        """End the training run, wait for what is being uploaded, and end the service."""
        import wandb

        try:
            if self._train is not None:
                self._train.finish(exit_code=int(failed))
        finally:
            wandb.teardown()
        if self._train is not None and self._offline and not failed:
            print(f"Weights & Biases: recorded offline; to upload: wandb sync {self._run.output / 'wandb'}")

    def _has_key(self) -> bool:
        import wandb

        try:
            return wandb.login(prompt=False, verify=False)
        except wandb.errors.AuthenticationError as error:
            self._go_offline(error)
            return False

    def _go_offline(self, error: Exception) -> None:
        self._offline = True
        print(f"warning: Weights & Biases records offline: {' '.join(str(error).split())}", file=sys.stderr)

    def _begin_folder(self) -> dict[str, str]:
        kept = self._folder / "runs.json"
        if kept.is_file():
            ids: dict[str, str] = json.loads(kept.read_text(encoding="utf-8"))
        else:
            ids = {name: secrets.token_hex(4) for name in ("preprocess", "train")}
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        kept.write_text(json.dumps(ids) + "\n", encoding="utf-8")
        return ids

    def _init(self, run_id: str, job_type: str, config: dict[str, Any]) -> Any:
        import wandb

        options = {
            "id": run_id,
            "job_type": job_type,
            "name": f"{self._run.handle}-{job_type}",
            "config": config,
            "dir": str(self._run.folder),
            "resume": "allow",
            "settings": self._settings,
            "project": wandb.setup().settings.project or PROJECT,
        }
        if not self._offline:
            try:
                run = wandb.init(mode="online", **options)
            except wandb.errors.Error as error:
                self._go_offline(error)
                wandb.teardown()  # the service still holds the run
                for attempt in self._folder.glob(f"run-*-{run_id}"):
                    shutil.rmtree(attempt)
            else:
                self._links[job_type] = str(run.url)
                return run
        return wandb.init(mode="offline", **options)

    def _record_dataset(self, run_id: str) -> None:
        metadata = dict(self._run.dataset)
        text = self._folder / "dataset.txt"
        self._run.write_dataset(text)
        run = self._init(run_id, "preprocess", config=metadata)
        tweets = self._artifact(f"{self._run.handle}-tweets", "raw-dataset", {"handle": self._run.handle})
        for number, path in enumerate(self._run.tweet_files):
            self._add(tweets, *self._raw_file(path, number))
        run.log_artifact(tweets)
        run.log_artifact(self._dataset_artifact())
        run.finish()

    def _raw_file(self, path: Path, number: int) -> tuple[Path, str]:
        """Return a file of tweets alone, and its name: an archive has its owner's messages as well."""
        prefix = f"{number}-" if len(self._run.tweet_files) > 1 else ""
        if path.is_file() and not zipfile.is_zipfile(path):
            return path, prefix + path.name
        tweets = self._folder / f"tweets-{number}.jsonl"
        with tweets.open("w", encoding="utf-8") as file:
            for tweet in self._run.read_tweets(path):
                file.write(json.dumps(tweet) + "\n")
        return tweets, f"{prefix}{path.stem}.jsonl"

    def _dataset_artifact(self) -> Any:
        artifact = self._artifact(f"{self._run.handle}-dataset", "train-dataset", self._run.dataset)
        self._add(artifact, self._folder / "dataset.txt", "dataset.txt")
        return artifact

    def _base_artifact(self) -> Any:
        folder = Path(self._run.base)
        record: dict[str, Any]
        if self._run.base == "scratch":
            record = {"base": "scratch", "model": self._run.config.get("scratch_model")}
        elif folder.is_dir():
            record = {"base": folder.resolve().name, "sha256": _hashes(folder)}
        else:
            record = {"base": self._run.base, "address": f"https://huggingface.co/{self._run.base}"}
        path = self._folder / "base.json"
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        artifact = self._artifact(record["base"], "pretrained-model", record)
        self._add(artifact, path, "base.json")
        return artifact

    def _artifact(self, name: str, kind: str, metadata: Mapping[str, Any]) -> Any:
        import wandb

        allowed = re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)[-MAX_NAME:]
        return wandb.Artifact(allowed, kind, metadata=dict(metadata))

    def _add(self, artifact: Any, path: Path, name: str) -> None:
        entry = artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
        if self._offline:  # where `wandb sync` will look for it, when the checkpoint lies in its place
            folder = self._run.folder.resolve()
            lies = path.resolve()
            if lies.is_relative_to(folder):
                lies = self._run.output.resolve() / lies.relative_to(folder)
            entry.local_path = str(lies)

    def _use(self, artifact: Any) -> None:
        # What use_artifact does first; it then waits for the upload, and refuses where there is no server.
        self._train._log_artifact(artifact, is_user_created=True, use_after_commit=True)


def _hashes(folder: Path) -> dict[str, str]:
    hashes = {}
    for path in sorted(folder.iterdir()):
        if path.is_file():
            with path.open("rb") as file:
                hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
