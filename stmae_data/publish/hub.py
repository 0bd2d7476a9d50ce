"""The Hugging Face Hub as a place to push to, by its own client (extra `hub`). Who you are is its business: no token passes here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from stmae_data.errors import StmaeDataError
from stmae_data.publish.push import Upload, refused

__all__ = ["Hub"]


class Hub:
    """A Hub at `endpoint`, the public one unless given."""

    def __init__(self, endpoint: str | None = None) -> None:
        try:
            from huggingface_hub import HfApi
        except ImportError as error:
            raise StmaeDataError("push needs the extra hub; install it: pip install 'stmae[hub]'") from error
        self._api: Any = HfApi(endpoint=endpoint, library_name="stmae")

    def prepare(self, repository: str, *, is_private: bool) -> None:
        """Make the repository where it is missing."""
        with _refusals(repository):
            self._api.create_repo(repository, repo_type="dataset", private=is_private, exist_ok=True)

    def known(self, repository: str) -> Mapping[str, str]:
        """Every file that is there; sha256 of the large ones. Small ones are sent again, and change nothing where they are equal."""
        from huggingface_hub.hf_api import RepoFile

        with _refusals(repository):
            tree = list(self._api.list_repo_tree(repository, repo_type="dataset", recursive=True))
        return {entry.path: entry.lfs.sha256 if entry.lfs else "" for entry in tree if isinstance(entry, RepoFile)}

    def withdraw(self, repository: str, names: Sequence[str]) -> None:
        """Take files away in one commit."""
        from huggingface_hub import CommitOperationDelete

        with _refusals(repository):
            operations = [CommitOperationDelete(path_in_repo=name) for name in names]
            self._api.create_commit(
                repository, operations, commit_message="a new version is coming", repo_type="dataset"
            )

    def commit(self, repository: str, uploads: Sequence[Upload], *, message: str) -> None:
        """Bring files there in one commit."""
        from huggingface_hub import CommitOperationAdd

        with _refusals(f"{uploads[0].name} for {repository}"):
            operations = [CommitOperationAdd(path_in_repo=each.name, path_or_fileobj=each.path) for each in uploads]
            self._api.create_commit(repository, operations, commit_message=message, repo_type="dataset")


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Every way in which the client fails, told in one sentence."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except (OSError, HFValidationError) as error:
        raise refused(what, error) from error
    except Exception as error:  # errors of the connection come from whatever HTTP library the client uses
        if type(error).__module__.partition(".")[0] in {
            "httpx",
            "httpx2",
            "httpcore",
            "httpcore2",
            "requests",
            "hf_xet",
        }:
            raise refused(what, error) from error
        raise
