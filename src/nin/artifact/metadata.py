"""The contract, labels, golden vectors and origin that every artifact carries."""

import json
from dataclasses import dataclass, fields
from typing import Any

from nin.artifact.golden import Golden
from nin.errors import InputError


@dataclass(frozen=True)
class Metadata:
    """What every artifact says of itself, in whatever way its format stores texts."""

    contract: dict[str, Any]
    labels: tuple[str, ...]
    golden: Golden
    weights_sha256: str
    versions: dict[str, str]

    def to_texts(self) -> dict[str, str]:
        return {
            "contract": json.dumps(self.contract),
            "labels": json.dumps(self.labels),
            "golden": self.golden.to_json(),
            "weights_sha256": self.weights_sha256,
            "versions": json.dumps(self.versions),
        }

    @classmethod
    def from_texts(cls, texts: dict[str, str]) -> "Metadata":
        """Raises InputError where a text is missing or isn't what `to_texts` writes."""
        try:
            return cls(
                contract=json.loads(texts["contract"]),
                labels=tuple(json.loads(texts["labels"])),
                golden=Golden.from_json(texts["golden"]),
                weights_sha256=texts["weights_sha256"],
                versions=json.loads(texts["versions"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"not an export of this project: its metadata can't be read ({error!r})"
            ) from error


METADATA_KEYS = tuple(f.name for f in fields(Metadata))
