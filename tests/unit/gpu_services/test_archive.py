"""A zip bomb is counted, not believed."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_services.chunking.archive import check_archive
from mesh.errors import InvalidRequest, PayloadTooLarge


def _file(folder: Path, content: bytes) -> Path:
    path = folder / "document.docx"
    path.write_bytes(content)
    return path


def test_an_archive_within_the_limit_passes_with_its_real_size(
    tmp_path: Path, office_archive: Callable[..., bytes]
) -> None:
    """The sum of what was inflated is given back."""
    path = _file(tmp_path, office_archive("docx", media=b"x" * 1000))
    assert check_archive(path, 10_000) == len(b"<Types/>") + len(b"<document/>") + 1000


def test_a_bomb_that_says_its_size_is_refused(tmp_path: Path, office_archive: Callable[..., bytes]) -> None:
    """A megabyte of zeros in a kilobyte is refused by the directory's own figures."""
    content = office_archive("docx", bomb=b"\0" * 2**20)
    assert len(content) < 5000
    with pytest.raises(PayloadTooLarge) as refused:
        check_archive(_file(tmp_path, content), 100_000)
    assert refused.value.reason == "DOCUMENT_UNPACKS_TOO_LARGE"


def test_a_bomb_that_lies_about_its_size_is_refused(tmp_path: Path, office_archive: Callable[..., bytes]) -> None:
    """A directory that claims 10 bytes for a megabyte does not get the megabyte unpacked."""
    content = office_archive("docx", bomb=b"\0" * 2**20)
    size = (2**20).to_bytes(4, "little")
    assert content.count(size) == 2  # the local header and the central directory
    with pytest.raises((PayloadTooLarge, InvalidRequest)) as refused:
        check_archive(_file(tmp_path, content.replace(size, (10).to_bytes(4, "little"))), 100_000)
    assert refused.value.reason in ("DOCUMENT_UNPACKS_TOO_LARGE", "DOCUMENT_DAMAGED")


def test_an_archive_of_very_many_parts_is_refused(tmp_path: Path) -> None:
    """Empty parts cost nothing to pack and something to open."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for number in range(20_001):
            archive.writestr(f"{number}", b"")
    with pytest.raises(PayloadTooLarge):
        check_archive(_file(tmp_path, out.getvalue()), 2**30)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("padding", [0, 64 * 1024 - 5])
def test_xml_that_declares_entities_is_refused(
    tmp_path: Path, office_archive: Callable[..., bytes], encoding: str, padding: int
) -> None:
    """Billion laughs and XXE begin with a declaration that Office documents never have, wherever it stands."""
    xml = (" " * padding + '<!DOCTYPE a [<!ENTITY b "b">]><a>&b;</a>').encode(encoding)
    with pytest.raises(InvalidRequest) as refused:
        check_archive(_file(tmp_path, office_archive("docx", part__xml=xml)), 2**30)
    assert refused.value.reason == "DOCUMENT_DAMAGED"


def test_a_truncated_archive_is_damaged(tmp_path: Path, office_archive: Callable[..., bytes]) -> None:
    """A cut archive is the sender's to mend."""
    with pytest.raises(InvalidRequest) as refused:
        check_archive(_file(tmp_path, office_archive("docx")[:-30]), 2**30)
    assert refused.value.reason == "DOCUMENT_DAMAGED"


@pytest.mark.parametrize("encoding", ["utf-32", "utf-32-le", "utf-32-be", "cp037", "utf-7", "nobody-knows-it"])
def test_xml_in_an_encoding_that_hides_its_words_is_refused(
    tmp_path: Path, office_archive: Callable[..., bytes], encoding: str
) -> None:
    """What cannot be searched cannot be trusted."""
    declaration = f'<?xml version="1.0" encoding="{encoding}"?>'
    written = declaration.encode("ascii" if encoding in ("utf-7", "nobody-knows-it") else encoding)
    with pytest.raises(InvalidRequest) as refused:
        check_archive(_file(tmp_path, office_archive("docx", part__bin=written + b"<a/>")), 2**30)
    assert refused.value.reason == "DOCUMENT_DAMAGED"


@pytest.mark.parametrize(
    "declaration",
    [
        f'<?xml version="1.0"{" " * 300}encoding="UTF-7"?>',
        f'<?xml version="1.0"{" " * 100_000}encoding="UTF-7"?>',
        """<?xml version="encoding='utf-8'" encoding="UTF-7"?>""",
        "<?xml version='1.0'\nencoding\t=\n'utf-7'?>",
    ],
    ids=["padded", "padded out of sight", "a decoy", "other spaces"],
)
def test_an_encoding_cannot_be_put_out_of_sight(
    tmp_path: Path, office_archive: Callable[..., bytes], declaration: str
) -> None:
    """A parser reads a declaration to its end, however long it is."""
    hidden = declaration.encode() + b"+ADwAIQ-DOCTYPE a [+ADwAIQ-ENTITY b 'b'+AD4-]+AD4-<a>+ACY-b;</a>"
    with pytest.raises(InvalidRequest) as refused:
        check_archive(_file(tmp_path, office_archive("docx", part__xml=hidden)), 2**30)
    assert refused.value.reason == "DOCUMENT_DAMAGED"


@pytest.mark.parametrize("encoding", ["UTF-8", "utf-16", "ISO-8859-1", "windows-1252", "us-ascii"])
def test_xml_in_an_encoding_that_can_be_searched_passes(
    tmp_path: Path, office_archive: Callable[..., bytes], encoding: str
) -> None:
    """Office files embed pictures and data of others."""
    written = f'<?xml version="1.0" encoding="{encoding}"?><a/>'.encode(encoding)
    assert check_archive(_file(tmp_path, office_archive("docx", part__svg=written)), 2**30) > 0


def test_entities_are_found_in_parts_of_any_name(tmp_path: Path, office_archive: Callable[..., bytes]) -> None:
    """A relationship may make any part the document."""
    with pytest.raises(InvalidRequest):
        check_archive(_file(tmp_path, office_archive("docx", picture__png=b'<!DOCTYPE a [<!ENTITY b "b">]>')), 2**30)
