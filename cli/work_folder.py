"""What a long command keeps in a folder, so that it goes on from there: networks, and what was measured on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

Kept: TypeAlias = Mapping[str, object]  # plain JSON
LARGEST = 2**30  # bytes of an entry that is read


class WorkFolder:
    """Entries by name, each with the identity of what it was made from; one with another identity is made again.

    Args:
        folder: created where it is not there.

    Attributes:
        folder: where the entries are.
        taken: the names of measurements that were taken from there.
        networks: the names of networks that were taken from there.
        stale: entries of the same name that were of something else, each with what differs.

    Raises:
        SResNetError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        import s_resnet

        self.folder = folder
        self.taken: list[str] = []
        self.networks: list[str] = []
        self.stale: dict[str, str] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            got, remedy = s_resnet.files.reason(error), "Choose another one with --work"
            said = s_resnet.errors.message(str(folder), "cannot be created", got, "a writable folder", remedy)
            raise s_resnet.SResNetError(said) from error

    def network(self, name: str) -> Path:
        """Where a network is kept."""
        return self.folder / f"{name}.snn"

    def take(self, name: str, identity: Kept) -> Kept | None:
        """The entry of this name and identity, or None."""
        known = self._read(name)
        if known is None:
            return None
        was, found = known.get("identity"), known.get("found")
        if not isinstance(was, dict) or not isinstance(found, dict):
            self.stale[name] = "not an entry of this version"
        elif was != plain(identity):
            differ = [key for key in (*identity, *was) if was.get(key) != plain(identity).get(key)]
            self.stale[name] = f"other {', '.join(dict.fromkeys(differ))}"
        else:
            self.taken.append(name)
            return found
        return None

    def take_network(self, name: str, identity: Kept) -> bool:
        """Whether the network of this name and identity is there, whole."""
        found = self.take(name, identity)
        if found is None:
            return False
        path = self.network(name)
        if path.is_file() and digest_of(path) == found.get("sha256"):
            self.taken.remove(name)
            self.networks.append(name)
            return True
        self.refuse(name, "its file was changed or removed")
        return False

    def refuse(self, name: str, why: str) -> None:
        """Have an entry that was taken made again after all."""
        self.taken.remove(name)
        self.stale[name] = why

    def keep(self, name: str, identity: Kept, found: Kept) -> None:
        """Write an entry, whole or not at all.

        Raises:
            SResNetError: it cannot be written.
        """
        import s_resnet

        s_resnet.files.save_json(self._entry(name), {"identity": plain(identity), "found": plain(found)})

    def keep_network(self, name: str, identity: Kept) -> None:
        """Write the entry of a network that lies in its place."""
        self.keep(name, identity, {"sha256": digest_of(self.network(name))})

    def said(self) -> list[str]:
        """What was taken from the folder, and what was made again, in lines."""
        counts = ((len(self.networks), "network(s)"), (len(self.taken), "measurement(s)"))
        taken = " and ".join(f"{count} {what}" for count, what in counts if count)
        lines = [f"Taken from {self.folder}: {taken}."] if taken else []
        return [*lines, *(f"Made again: {name}: {why}." for name, why in self.stale.items())]

    def _entry(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _read(self, name: str) -> dict[str, object] | None:
        """What the file of an entry holds; None where there is none, or where it is no JSON object."""
        import s_resnet

        path = self._entry(name)
        if not path.exists():
            return None
        try:
            known: object = json.loads(s_resnet.files.read(path, LARGEST))
        except (OSError, ValueError, RecursionError) as error:
            self.stale[name] = f"cannot be read: {s_resnet.files.reason(error)}"
            return None
        return known if isinstance(known, dict) else {}


def plain(values: Kept) -> dict[str, object]:
    """The values as they come back from JSON."""
    back: object = json.loads(json.dumps(dict(values)))
    assert isinstance(back, dict)
    return back


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_values(*values: object) -> str:
    """A digest of plain JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
