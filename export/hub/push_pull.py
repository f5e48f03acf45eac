"""A proven export to the Hugging Face Hub in one commit, and a delta from there into the store."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.hf_api import ModelInfo

from glora_deploy.data.preprocess import Preprocessing
from glora_deploy.errors import HubError, ParityError, StoreError
from glora_deploy.parity import PARITY_FILE, Report
from glora_deploy.store.artifact import ADAPTER, MANIFEST, Artifact, read_artifact
from glora_deploy.store.export_record import (
    CONFIG_FILE,
    MODEL_FILE,
    PIXELS_FILE,
    WEIGHTS_FILE,
    ExportRecord,
)
from glora_deploy.store.manifest import Manifest
from glora_deploy.store.reader import require_slug
from glora_deploy.store.redact import names_place, redacted
from glora_deploy.store.store import ArtifactStore

from ..onnx_model.write import is_self_contained
from ..stored_backbone import provide_backbone, require_same_backbone
from .client import DELAYS_S, LOG_IN, HubClient, fetch_file, require_branch
from .model_card import is_ours, model_card

if TYPE_CHECKING:  # it brings torch, which neither a push nor most pulls need
    from glora_deploy.backbones.load import Backbone

HUB_FOLDER = "glora"
"""Folder of the delta in a repository."""
README = "README.md"


def require_pushable(
    repo: str,
    revision: str | None = None,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    delays_s: Sequence[float] = (1.0,),
    on_step: Callable[[str], None] = lambda _: None,
) -> None:
    """Find what is wrong with the aim of a push before there is an export to push.

    Nothing is made on the Hub, and whether this user may write there is left to the push.

    Args:
        repo: ``user/name``.
        revision: Branch; the default one if None.
        token: Access token; the one that is logged in by default.
        endpoint: Address of the Hub; ``HF_ENDPOINT`` by default.
        delays_s: Seconds to wait before each further attempt.
        on_step: Told about each further attempt.

    Raises:
        HubError: If a name is malformed, the token is missing, refused or for reading only, or the
            Hub does not answer.
    """
    client = HubClient(repo, token=token, endpoint=endpoint, delays_s=delays_s, on_step=on_step)
    if revision is not None:
        require_branch(repo, revision)
    known = client.call(lambda api: api.whoami())
    # A fine-grained token has a role of its own, which does not say what it may write to.
    if known.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise HubError(f"{repo}: the token must be allowed to write, it may only read. {LOG_IN}.")


def push(
    store: ArtifactStore,
    artifact: Artifact,
    precision: str,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    license: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    delays_s: Sequence[float] = DELAYS_S,
    on_step: Callable[[str], None] = lambda _: None,
) -> str:
    """Put one export, its delta and a model card into a model repository, in one commit.

    The repository then loads with ``timm.create_model("hf-hub:USER/NAME", pretrained=True)``.
    Files of the same names are replaced; of an earlier push, those that this one does not have are
    removed; everything else stays, and so does a README.md that was not written here. Nothing of it
    says where on this machine the task's images lie: the pushed manifest names their kind alone.

    Args:
        store: Holds the artifact and the export.
        artifact: The task's version.
        precision: Which of its exports.
        repo: ``user/name``; made if it is missing.
        private: Make it private; a repository that exists must be private already.
        revision: Branch, made if it is missing; the default one if None.
        license: Identifier that the Hub knows; by default the backbone's in config.json, else
            ``unknown``.
        token: Access token; the one that is logged in by default.
        endpoint: Address of the Hub; ``HF_ENDPOINT`` by default.
        delays_s: Seconds to wait before each further attempt after a lost connection.
        on_step: Told what happens next.

    Returns:
        The address of the repository, or of its branch.

    Raises:
        StoreError: If there is no such export, or it was made by a release whose reports name the
            folder of the data.
        ArtifactError: If a file of it or the delta is damaged, or it was made from another one.
        ParityError: If the export was not proven.
        HubError: If a name is malformed, the token is missing, wrong or may not write, a
            repository of that name must not be used, or the Hub does not answer.
    """
    client = HubClient(repo, token=token, endpoint=endpoint, delays_s=delays_s, on_step=on_step)
    if revision is not None:
        require_branch(repo, revision)
    on_step("checking the export")
    upload = _Upload.of_export(store, artifact, precision)
    license = license or upload.license
    work = _Push(
        upload=upload,
        repo=repo,
        private=private,
        revision=revision,
        license=license,
        readme=upload.card(repo, revision, license),
        message=f"{artifact.task}/{artifact.version} {precision}",
        on_step=on_step,
    )
    client.call(work.commit)
    return f"{client.api.endpoint}/{repo}" + (f"/tree/{revision}" if revision else "")


def pull(
    store: ArtifactStore,
    repo: str,
    *,
    revision: str | None = None,
    task: str | None = None,
    make_current: bool = True,
    checkpoint: Path | str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    delays_s: Sequence[float] = (1.0,),
    on_step: Callable[[str], None] = lambda _: None,
) -> Artifact:
    """Bring a pushed delta into the store as a new version of its task.

    Only the delta is fetched; its backbone comes from the store, this package, timm, or a local
    file. ``on_step`` is told the commit. The Hub is asked which one a branch stands for; the local
    cache alone serves a full commit id, and while ``HF_HUB_OFFLINE`` is set.

    Args:
        store: Gets the delta and, if it lacks it, the backbone. Its folder is made if it is
            missing, once both are at hand.
        repo: ``user/name``.
        revision: Branch, tag or commit; the default branch if None.
        task: Name in this store; the one it was pushed under by default.
        make_current: Whether it answers from now on.
        checkpoint: Local weights of the backbone, where neither store nor source has them.
        token: Access token; the one that is logged in by default.
        endpoint: Address of the Hub; ``HF_ENDPOINT`` by default.
        delays_s: Seconds to wait before each further attempt; downloads have patience of their own.
        on_step: Told what happens next.

    Raises:
        HubError: If the repository, the revision or the delta in it cannot be had.
        ArtifactError: If the delta is not what its manifest says.
        NonFiniteError: If a tensor holds NaN or infinity.
        BackboneMismatchError: If the backbone found is not the one it was trained on.
        StoreError: If the task is no slug, a file is where the store should be, or no space is
            left.
    """
    client = HubClient(repo, token=token, endpoint=endpoint, delays_s=delays_s, on_step=on_step)
    # Whatever needs no download is checked before there is one.
    if task is not None:
        require_slug("task", task)
    if store.root.exists():
        ArtifactStore.open(store.root)
    on_step(f"fetching the delta of {repo}")
    fetched = read_artifact(_fetch_delta(client, revision))
    on_step(f"{repo} is at commit {fetched.path.parent.name}")
    tensors = fetched.stored_tensors()
    backbone = _missing_backbone(store, fetched.manifest, checkpoint, on_step)
    ArtifactStore.create(store.root)
    if backbone is not None:
        provide_backbone(store, fetched.manifest, backbone)
    name = task or fetched.task
    return store.put(name, tensors, fetched.manifest, make_current=make_current)


@dataclass(frozen=True, slots=True)
class _Upload:
    """What one export gives to a repository."""

    artifact: Artifact
    folder: Path
    report: Report
    names: tuple[str, ...]
    """Of the files at the root of the repository, the card excluded."""

    @classmethod
    def of_export(cls, store: ArtifactStore, artifact: Artifact, precision: str) -> _Upload:
        """Check everything that will leave the machine: delta, files, proof."""
        folder = store.export_dir(artifact, precision)
        where = f"{artifact.task}/{artifact.version} {precision}"
        record = ExportRecord.read(folder)
        if record is None:
            raise StoreError(f"{where}: must be exported before it is pushed, no export is here.")
        artifact.tensors()
        record.require_of(folder, artifact.manifest, precision)
        names = tuple(n for n in _ROOT_FILES if n in record.files)
        for name in names:
            record.require_intact(folder, name)
        report = record.report(folder)
        if report is None:
            raise ParityError(f"{where}: has no {PARITY_FILE}. Export it again.")
        report.require_passed()
        if names_place(artifact.manifest, report.to_json()):
            raise StoreError(f"{where}: {PARITY_FILE} names the data's folder. Export it again.")
        return cls(artifact, folder, report, names)

    @property
    def license(self) -> str:
        """The backbone's, where timm knows it."""
        return str(self._config()["pretrained_cfg"].get("license") or "unknown")

    @property
    def self_contained(self) -> bool:
        """Whether model.onnx needs no other file; its weights are not loaded to find out."""
        return MODEL_FILE in self.names and is_self_contained(self.folder / MODEL_FILE)

    def card(self, repo: str, revision: str | None, license: str) -> str:
        """The text of README.md."""
        return model_card(
            self.manifest,
            self.report,
            repo=repo,
            revision=revision,
            license=license,
            merged_bytes=(self.folder / WEIGHTS_FILE).stat().st_size,
            onnx=MODEL_FILE in self.names,
            pixels=PIXELS_FILE in self.names,
            self_contained=self.self_contained,
        )

    def operations(self, license: str) -> list[CommitOperationAdd]:
        """Every file but the card; the licence is written into timm's config."""
        config = self._config()
        config["pretrained_cfg"]["license"] = license
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        return [
            CommitOperationAdd(CONFIG_FILE, text.encode()),
            *(
                CommitOperationAdd(name, self.folder / name)
                for name in self.names
                if name != CONFIG_FILE
            ),
            CommitOperationAdd(f"{HUB_FOLDER}/{MANIFEST}", self._manifest_bytes()),
            CommitOperationAdd(f"{HUB_FOLDER}/{ADAPTER}", self.artifact.path / ADAPTER),
        ]

    @property
    def manifest(self) -> Manifest:
        """What others may know of the artifact."""
        return redacted(self.artifact.manifest)

    def _manifest_bytes(self) -> bytes:
        if self.manifest == self.artifact.manifest:
            return (self.artifact.path / MANIFEST).read_bytes()
        return self.manifest.to_json()

    def _config(self) -> dict[str, dict[str, str]]:
        config: dict[str, dict[str, str]] = json.loads((self.folder / CONFIG_FILE).read_bytes())
        return config


@dataclass(frozen=True, slots=True, kw_only=True)
class _Push:
    """An upload and where it goes."""

    upload: _Upload
    repo: str
    private: bool
    revision: str | None
    license: str
    readme: str
    message: str
    on_step: Callable[[str], None]

    def commit(self, api: HfApi) -> None:
        """Make what is missing of the repository and its branch, and commit everything at once."""
        api.create_repo(self.repo, private=self.private or None, exist_ok=True)
        if self.revision is not None:
            api.create_branch(self.repo, branch=self.revision, exist_ok=True)
        there = api.model_info(self.repo, revision=self.revision)
        if self.private and not there.private:
            raise HubError(
                f"{self.repo}: must be private, it exists and is public. Change it there."
            )
        self.on_step(f"uploading {self.message}")
        # Operations are made anew for each attempt: they remember what the Hub lacked at the last.
        files = self.upload.operations(self.license)
        if not _has_own_card(api, there):
            files.append(CommitOperationAdd(README, self.readme.encode()))
        api.create_commit(
            self.repo,
            [*files, *_removals(there, self.upload.names)],
            commit_message=f"Push {self.message}",
            revision=self.revision,
            parent_commit=there.sha,  # what is removed was decided by looking at this commit
        )


_ROOT_FILES = (CONFIG_FILE, WEIGHTS_FILE, MODEL_FILE, PIXELS_FILE, PARITY_FILE)
"""What an export shares; an engine belongs to one kind of GPU and stays at home."""


def _removals(there: ModelInfo, names: Sequence[str]) -> list[CommitOperationDelete]:
    """Files of an earlier push that this one does not replace."""
    present = {file.rfilename for file in there.siblings or ()}
    if f"{HUB_FOLDER}/{MANIFEST}" not in present:
        return []  # nothing there is ours
    return [CommitOperationDelete(name) for name in _ROOT_FILES if name in present - {*names}]


def _has_own_card(api: HfApi, there: ModelInfo) -> bool:
    """Whether somebody wrote a README.md of their own."""
    if all(file.rfilename != README for file in there.siblings or ()):
        return False
    present = Path(api.hf_hub_download(there.id, README, revision=there.sha))
    return not is_ours(present.read_text("utf-8", errors="replace"))


def _fetch_delta(client: HubClient, revision: str | None) -> Path:
    """The folder, in the local cache of the Hub, of both files at one commit."""
    manifest, adapter = f"{HUB_FOLDER}/{MANIFEST}", f"{HUB_FOLDER}/{ADAPTER}"

    def fetch(api: HfApi) -> Path:
        commit = fetch_file(api, client.repo, manifest, revision).name
        # Both of one commit: a push in between cannot mix two deltas.
        return fetch_file(api, client.repo, adapter, commit) / HUB_FOLDER

    try:
        return client.call(fetch)
    except HubError as error:
        if isinstance(error.__cause__, EntryNotFoundError) and not isinstance(
            error.__cause__, FileNotFoundError
        ):
            raise HubError(
                f"{client.repo}: must hold {manifest} and {ADAPTER}, it does not. "
                "Only what was pushed by glora-deploy can be pulled."
            ) from error
        raise


def _missing_backbone(
    store: ArtifactStore,
    manifest: Manifest,
    checkpoint: Path | str | None,
    on_step: Callable[[str], None],
) -> Backbone | None:
    """The backbone of a delta, from its source or the user; None if the store keeps it."""
    recorded = manifest.backbone
    if checkpoint is None and store.hold_backbone(recorded.fingerprint):
        return None
    kind, _, name = recorded.source.partition(":")
    if checkpoint is None and kind == "file":
        raise StoreError(
            f"{manifest.task}: its backbone is {recorded.name} with the weights of {name} "
            f"({recorded.fingerprint[:12]}..), which {store.root} does not keep. "
            "Give that file with --checkpoint."
        )
    from glora_deploy.backbones.load import load_backbone

    on_step(f"fetching the backbone {recorded.source}")
    if checkpoint is None and kind == "random":
        checkpoint = recorded.source
    loaded = load_backbone(
        recorded.name if checkpoint is not None else name,
        checkpoint=checkpoint,
        model_args=recorded.model_args,
    )
    images = Preprocessing(**manifest.preprocessing.model_dump())
    require_same_backbone(manifest, loaded)
    return replace(loaded, preprocessing=images)
