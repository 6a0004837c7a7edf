"""Documents made to hurt whoever opens them, written here: no file of anybody else's is needed."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_TYPES = (
    '<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Default Extension="png" ContentType="image/png"/>'
    '<Override PartName="/{part}" ContentType="application/vnd.openxmlformats-officedocument.'
    'wordprocessingml.document.main+xml"/></Types>'
)
_RELATIONSHIPS = (
    '<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    '<Relationship Id="r1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" '
    'Target="{part}"/></Relationships>'
)
LAUGHS = (
    '<!DOCTYPE lolz [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(10))
    + "]>"
)
"""Ten entities that each hold the one before ten times: 20 GB of laughter."""


def body(text: str) -> str:
    """The XML of a Word document with one paragraph."""
    return f'<w:document xmlns:w="{WORD}"><w:body><w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:body></w:document>'


def docx(document: str | bytes, *more: tuple[str, bytes], part: str = "word/document.xml") -> bytes:
    """A Word file with this main part, and further ones."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", _TYPES.format(part=part))
        archive.writestr("_rels/.rels", _RELATIONSHIPS.format(part=part))
        archive.writestr(part, document)
        for name, content in more:
            archive.writestr(name, content)
    return out.getvalue()


def pdf(objects: Iterable[bytes], *, trailer: bytes = b"") -> bytes:
    """A PDF of numbered objects, the first of them its catalogue."""
    out, places = b"%PDF-1.7\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(places) + 1)
    end = b"trailer\n<</Size %d /Root 1 0 R %s>>\nstartxref\n%d\n%%%%EOF\n" % (len(places) + 1, trailer, len(out))
    return out + head + table + end


def stream(data: bytes, entries: bytes = b"", *, packed: bool = False) -> bytes:
    """A PDF stream object; ``packed`` where the data is deflated already."""
    kind = b"/Filter /FlateDecode " if packed else b""
    return b"<<%s%s/Length %d>>\nstream\n%s\nendstream" % (kind, entries, len(data), data)


def one_page(
    content: bytes, *more: bytes, resources: bytes = b"/Font <</F 5 0 R>>", box: bytes = b"0 0 612 792"
) -> bytes:
    """A PDF with one page, whose content is the fourth object; ``more`` begins with the sixth."""
    return pdf(
        [
            b"<</Type /Catalog /Pages 2 0 R>>",
            b"<</Type /Pages /Kids [3 0 R] /Count 1>>",
            b"<</Type /Page /Parent 2 0 R /MediaBox [%s] /Contents 4 0 R /Resources <<%s>>>>" % (box, resources),
            content,
            b"<</Type /Font /Subtype /Type1 /BaseFont /Helvetica>>",
            *more,
        ]
    )


def deflated(megabytes: int, unit: bytes = b"\x00") -> bytes:
    """So many megabytes of one unit again and again, deflated."""
    packer = zlib.compressobj(9)
    block = unit * (2**20 // len(unit))
    return b"".join([*(packer.compress(block) for _ in range(megabytes)), packer.flush()])


def png(width: int, height: int, megabytes: int = 0) -> bytes:
    """A PNG that claims this size, and holds so many megabytes of zeros as its picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    picture = deflated(megabytes) if megabytes else zlib.compress(b"\x00")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", picture) + chunk(b"IEND", b"")


def with_picture(picture: bytes) -> bytes:
    """A Word file that shows a picture."""
    drawing = (
        '<w:p><w:r><w:drawing xmlns:wp="http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing" '
        'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" '
        'xmlns:pic="http://schemas.openxmlformats.org/drawingml/2006/picture" '
        'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"><wp:inline><a:graphic>'
        '<a:graphicData uri="http://schemas.openxmlformats.org/drawingml/2006/picture"><pic:pic><pic:blipFill>'
        '<a:blip r:embed="p1"/></pic:blipFill></pic:pic></a:graphicData></a:graphic></wp:inline></w:drawing></w:r>'
        "</w:p>"
    )
    relationships = (
        '<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        '<Relationship Id="p1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/image" '
        'Target="media/image1.png"/></Relationships>'
    )
    document = body("words").replace("</w:body>", f"{drawing}</w:body>")
    return docx(document, ("word/_rels/document.xml.rels", relationships.encode()), ("word/media/image1.png", picture))


def encrypted_pdf() -> bytes:
    """A PDF that says it is encrypted, with a key that nobody has."""
    entries = b"<</Filter /Standard /V 2 /R 3 /Length 128 /P -44 /O <%s> /U <%s>>>" % (b"41" * 32, b"42" * 32)
    made = one_page(stream(b"BT /F 12 Tf (words) Tj ET"), entries)
    return made.replace(b"/Root 1 0 R", b"/Root 1 0 R /Encrypt 6 0 R /ID [<%s> <%s>]" % (b"43" * 16, b"43" * 16))
