import contextlib
import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast


def required(path: Path, where: str) -> Path:
    """The path of a file that there is.

    Raises a `FileNotFoundError` that says `where` to get it otherwise.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. It is from {where}.")
    return path


def members(
    archive: Path, wanted: Callable[[str], bool], *, largest: int = 2**28
) -> Iterator[tuple[str, bytes]]:
    """Names and contents of files in a tar, by gzip or not, without unpacking it.

    - `wanted`: of which names.
    - `largest`: how many bytes a file may have.

    Raises a `ValueError` if the archive is damaged, or has a name that leads out of it, a link,
    or a device: no published archive has.
    """
    with (
        damaged(archive),
        _opened(archive) as file,
        tarfile.open(fileobj=file, mode="r|") as tar,
    ):
        for member in tar:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or "\\" in member.name:
                raise ValueError(f"{archive} has a member that leads out: {member.name!r}.")
            if member.isdir():
                continue
            if not member.isreg():
                raise ValueError(f"{archive} has a member that is no file: {member.name!r}.")
            if not wanted(str(path)):
                continue
            if member.size > largest:
                raise ValueError(
                    f"{member.name!r} in {archive} has {member.size:,} bytes; at most "
                    f"{largest:,} are read."
                )
            content = tar.extractfile(member)
            assert content is not None  # it is a regular file
            yield str(path), content.read()
        while file.read(2**20):
            pass  # gzip keeps its checksum at the end


def _opened(archive: Path) -> BinaryIO:
    with archive.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(archive)) if zipped else archive.open("rb")


@contextlib.contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Whatever decompressing raises as a `ValueError` that names the file."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged or cut off: {error}") from error


def counted(path: Path, found: int, count: int | None, where: str) -> None:
    """Raises a `ValueError` if a file has not as many examples as were published, and `count`
    says how many these are.
    """
    if count is not None and found != count:
        raise ValueError(
            f"{path} has {found:,} examples, not the {count:,} that were published: get it "
            f"anew from {where}. If it is another, say how many there are."
        )


def lines(path: Path, where: str) -> Iterator[tuple[int, str]]:
    """The lines of a text in UTF-8, numbered from 1, without their ends.

    They end with a line feed, as the writers of these files meant it. Python's `splitlines`
    would also end them at a form feed or a Unicode line separator, which texts have.
    """
    with required(path, where).open(encoding="utf-8", newline="\n") as file:
        try:
            for number, line in enumerate(file, 1):
                yield number, line.removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8: {error}") from error
