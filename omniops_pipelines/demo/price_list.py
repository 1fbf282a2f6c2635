"""The price list of the demonstration shop as a PDF, made from the same figures as the pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def price_list_pdf(title: str, rows: Sequence[tuple[str, str, str]]) -> bytes:
    """Return a one-page PDF with a heading and one line for each ``(article, name, price)``.

    Written by hand, since a table in a built-in font needs no library. The same rows give the same
    bytes, so that the document's ETag is stable from one start to the next.
    """
    text = [_show("F2", 18, 60, 780, title)]
    for line, (article, name, price) in enumerate(rows):
        y = 740 - 22 * line
        text += [
            _show("F1", 11, 60, y, article),
            _show("F1", 11, 140, y, name),
            _show("F1", 11, 440, y, f"EUR {price}"),
        ]
    stream = b"\n".join(text)
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /%s /Encoding /WinAnsiEncoding >>"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R /Lang (en) >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R /F2 6 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        font % b"Helvetica",
        font % b"Helvetica-Bold",
        b"<< /Title (%s) >>" % _escaped(title),
    ]
    return _assembled(objects, info=len(objects))


def _show(font: str, size: int, x: int, y: int, text: str) -> bytes:
    return b"BT /%s %d Tf %d %d Td (%s) Tj ET" % (font.encode("ascii"), size, x, y, _escaped(text))


def _escaped(text: str) -> bytes:
    for special in "\\()":
        text = text.replace(special, f"\\{special}")
    return text.encode("cp1252")


def _assembled(objects: Sequence[bytes], *, info: int) -> bytes:
    # Four high bytes in the second line tell transfer programs that this is binary (ISO 32000, 7.5.2).
    pdf = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    offsets = []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(pdf))
        pdf += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = len(pdf)
    pdf += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    for offset in offsets:
        pdf += b"%010d 00000 n \n" % offset
    pdf += b"trailer\n<< /Size %d /Root 1 0 R /Info %d 0 R >>\n" % (len(objects) + 1, info)
    pdf += b"startxref\n%d\n%%%%EOF\n" % table
    return bytes(pdf)
