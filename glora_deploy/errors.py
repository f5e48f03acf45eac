"""What can go wrong in the world, as one tree.

::

    GloraDeployError
    ├── StoreError             the store or something named in it is missing, or is in the way
    │   └── NotInStoreError    the task or version asked for is not there, or not any more
    ├── ArtifactError          a stored file is damaged, altered or not what its manifest says
    ├── BackboneMismatchError  a delta meets a backbone it was not trained on
    ├── DataError              a data set cannot be read as asked
    ├── NonFiniteError         a weight or a result holds NaN or infinity
    ├── ParityError            two stages that must agree do not
    ├── ExportError            a file could not be built
    │   └── NotRunnableError   a TensorRT plan is sound, and this machine is not one it runs on
    ├── HubError               the Hub refused, or could not be reached
    ├── OriginError            where versions are published refused, or could not be reached
    └── MissingDependencyError an optional package is not installed

A caller's mistake in calling a function stays ``ValueError`` or ``TypeError``. The command lines
turn each of these, and ``OSError``, into one line on stderr and exit status 1.
"""

from __future__ import annotations


class GloraDeployError(Exception):
    """Base of everything this project raises about the world outside the call."""


class StoreError(GloraDeployError):
    """The store, a task or a version is missing, misnamed, or in the way."""


class NotInStoreError(StoreError):
    """The task or version asked for is not in the store, or not any more."""


class ArtifactError(GloraDeployError):
    """A stored file is damaged, altered, or disagrees with its manifest."""


class BackboneMismatchError(GloraDeployError):
    """A delta meets a backbone whose tensors are not the ones it was trained on."""


class DataError(GloraDeployError):
    """A data set is missing, empty or malformed."""


class NonFiniteError(GloraDeployError):
    """A weight or a result holds NaN or infinity."""


class ParityError(GloraDeployError):
    """Two stages that must compute the same do not."""


class ExportError(GloraDeployError):
    """An export could not be built."""


class NotRunnableError(ExportError):
    """A TensorRT plan is sound, and this machine has no GPU that it runs on."""


class HubError(GloraDeployError):
    """The Hugging Face Hub refused a request or could not be reached."""


class OriginError(GloraDeployError):
    """The place that versions are published to refused a request or could not be reached."""


class MissingDependencyError(GloraDeployError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}: pip install 'glora-deploy[{extra}]'")
