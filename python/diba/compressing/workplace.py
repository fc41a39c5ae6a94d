"""What is on the disk while a model is compressed, so that a run that was stopped goes on.

``OUT/.diba`` holds, until all is done: ``run.json``, what the run is of; ``model.json``, where its dense
model is; ``lock``, held by its process; ``layers``, finished layers; ``block``, trainings of the block that
is under way; ``part.0`` or ``part.1``, a model with finished blocks; ``part``, which of them, and what comes
next; ``training``, the state of retuning; ``final``, the result, and ``complete``, once all of it is there.
Then its files are moved to OUT, ``diba-compress.json`` last, and the folder is deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._internal.disk import replace_file
from .files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["DONE", "Workplace", "begun_in", "opened", "status"]

DONE = "diba-compress.json"
_FOLDER = ".diba"


@contextlib.contextmanager
def opened(
    out: Path, identity: Mapping[str, Any], model: Path, *, shared: bool = False
) -> Iterator[Workplace]:
    """The place of a run, new or gone on with, held by this process alone.

    Args:
        out: The folder to write.
        identity: What the result depends on, as plain values.
        model: Where the dense model is.
        shared: Whether others may hold it at the same time that say the same, and finish layers only.

    Raises:
        OSError: The folder cannot be made, or another process is at work in it.
        ValueError: It holds something else: another run, another result, or files of other kinds.
    """
    done = _known(out / DONE)
    if done is not None:
        _same(done["run"], identity, out, "holds the result of")
        shutil.rmtree(out / _FOLDER, ignore_errors=True)  # of a run that was killed while it cleared up
        yield Workplace(out, done)
        return
    folder = out / _FOLDER
    others = [] if not out.is_dir() else [path.name for path in out.iterdir() if path.name != _FOLDER]
    if others and not folder.is_dir():
        raise ValueError(
            f"{out} is not empty, it has {min(others)}; name a folder that is empty or not there"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("wb") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            raise OSError(16, "another process is compressing into it; wait for its end", str(out)) from None
        begun = _known(folder / "run.json")
        if begun is None:
            _write(folder / "model.json", {"path": str(model.absolute())})
            _write(folder / "run.json", identity)
        else:
            _same(begun, identity, out, "was begun with")
        yield Workplace(out, None)


def begun_in(out: Path) -> tuple[dict[str, Any], Path] | None:
    """The settings of the run in a folder, and the path of its model; None: there is none.

    Raises:
        ValueError: A file in it is damaged.
    """
    run, model = (_known(out / _FOLDER / name) for name in ("run.json", "model.json"))
    return None if run is None or model is None else (run["settings"], Path(model["path"]))


def status(out: Path) -> dict[str, Any]:
    """What a folder is: ``state`` is finished, running, stopped, or nothing; then what is on the disk.

    ``layers`` are those that are finished, ``blocks`` those of the model that is kept, None where there is
    none; ``stage`` says what comes next.

    Raises:
        ValueError: A file in it is damaged.
    """
    if _known(out / DONE) is not None:
        return {"state": "finished"}
    folder = out / _FOLDER
    if not folder.is_dir():
        return {"state": "nothing"}
    place = Workplace(out, None)
    found: dict[str, Any] = {"state": "running" if _is_held(folder / "lock") else "stopped"}
    found["layers"] = len(list(place.layers.glob("*.layer")))
    part = None if place.part is None else _known(place.part / "config.json")
    found["blocks"] = None if part is None else len(part.get("quantization_config", {}).get("blocks", {}))
    found["stage"] = {None: "compressing", "converted": "retuning"}.get(place.stage, "measuring")
    if place.complete is not None:
        found["stage"] = "moving the result"
    return found


def _is_held(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


class Workplace:
    """The folder of one run.

    Attributes:
        out: The folder to write.
        done: Facts about the finished run; None: it is not finished.
        layers: Folder of finished layers.
        training: File of the state of retuning.
        gradients: File of the gradients of the loss.
        block: Folder of the trainings of the block that is being fitted.
    """

    def __init__(self, out: Path, done: dict[str, Any] | None) -> None:
        self.out, self._folder = out, out / _FOLDER
        own = ("run", "files")
        self.done = None if done is None else {key: done[key] for key in done if key not in own}
        self.layers, self.training = self._folder / "layers", self._folder / "training"
        self.gradients, self.block = self._folder / "gradients", self._folder / "block"

    @property
    def part(self) -> Path | None:
        """The folder of the newest model that was kept."""
        found = _known(self._folder / "part")
        return None if found is None else self._folder / str(found["folder"])

    @property
    def stage(self) -> str | None:
        """The stage whose end the newest model is; None: it is in the middle of the first one."""
        found = _known(self._folder / "part")
        return None if found is None else found["stage"]

    def keep(self, save: Callable[[Path], object], stage: str | None = None) -> None:
        """Have a model saved to a new folder, which then takes the place of the last one, with its stage."""
        before = self.part
        name = "part.1" if before is not None and before.name == "part.0" else "part.0"
        _save_into(self._folder / name, save)
        _write(self._folder / "part", {"folder": name, "stage": stage})
        if before is not None:
            shutil.rmtree(before)

    def noted(self, name: str) -> Any:
        """What was noted by a name, as plain values; None: nothing."""
        return (_known(self._folder / name) or {}).get("value")

    def note(self, name: str, value: Any) -> None:
        """Note plain values, down to the disk, until the run is finished."""
        _write(self._folder / name, {"value": value})

    @property
    def complete(self) -> dict[str, Any] | None:
        """The facts about the result, if it is there and is to be moved only; None: it is not."""
        return _known(self._folder / "complete")

    def keep_result(self, save: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Have the result saved; returns what ``save`` says of it, which is kept with it."""
        facts: list[dict[str, Any]] = []
        _save_into(self._folder / "final", lambda folder: facts.append(save(folder)))
        _write(self._folder / "complete", facts[0])
        return facts[0]

    def take_layers(self, part: Path, identity: Mapping[str, Any]) -> None:
        """Copy the finished layers of another folder's run, which must be of the same task.

        Raises:
            OSError: A file cannot be read or written.
            ValueError: The folder is of no run, or of another one.
        """
        begun = _known(part / _FOLDER / "run.json")
        if begun is None:
            raise ValueError(f"{part} has no run in it; give the folders that diba compress --shard wrote")
        _same(begun, identity, part, "was begun with")
        self.layers.mkdir(exist_ok=True)
        for path in sorted((part / _FOLDER / "layers").glob("*.layer")):
            if not (self.layers / path.name).exists():
                replace_file(self.layers / path.name, path.read_bytes())

    def finish(self, identity: Mapping[str, Any], facts: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Move the result to where it belongs, and clear up; returns all facts."""
        final = self._folder / "final"
        for path in sorted(path for path in final.rglob("*") if path.is_file()):
            target = self.out / path.relative_to(final)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        weights = sorted(self.out.glob("*.safetensors"))
        size = sum(path.stat().st_size for path in weights)
        facts = {**facts, "bytes": size, "seconds": seconds}
        files = {path.name: sha256_of(path) for path in weights}
        _write(self.out / DONE, {**facts, "run": identity, "files": files})
        shutil.rmtree(self._folder)
        return facts


def _save_into(folder: Path, save: Callable[[Path], object]) -> None:
    """Save to a new folder, down to the disk."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    save(folder)
    os.umask(mask := os.umask(0o077))
    for path in (*folder.rglob("*"), folder):
        if path.is_file():
            path.chmod(0o666 & ~mask)  # safetensors writes for the owner alone
        if path.suffix == ".safetensors":
            _order_metadata(path)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _order_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file, which the library writes in an order of chance."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # the same text in another order, so it is
            file.seek(8)
            file.write(text.ljust(length))


def _known(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete {path.parent} to begin anew") from error
    return found


def _write(path: Path, values: Mapping[str, Any]) -> None:
    replace_file(path, (json.dumps(values, indent=1, sort_keys=True) + "\n").encode())


def _same(found: Mapping[str, Any], asked: Mapping[str, Any], out: Path, what: str) -> None:
    """Require that a folder is of the run that is asked for."""
    asked = json.loads(json.dumps(asked))
    pairs = [
        (f"{section} {name}", found.get(section, {}).get(name), now.get(name))
        for section, now in asked.items()
        for name in {**found.get(section, {}), **now}
    ]
    other = [f"{what}: {_shown(old)}, now {_shown(new)}" for what, old, new in pairs if old != new]
    if other:
        raise ValueError(
            f"{out} {what} other input ({'; '.join(other[:4])}); name another folder, or delete it"
        )


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 20 else f"{text[:12]}..."
