"""Opens documents that name hosts, and prints how many, the packets sent meanwhile, and those after one of our own."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

from gpu_services.chunking.child_process import Child
from gpu_services.chunking.events import ChildSetup, Limits, Order
from inference import package
from tests.unit.gpu_services import hostile as make

HOSTS = ("http://127.0.0.1:9", "http://198.18.0.1", "http://attacker.example", "ftp://127.0.0.1/", "//127.0.0.1/share")


def sent() -> int:
    """Packets that this network namespace has sent, over IPv4 and over IPv6, less the kernel's own greetings."""
    lines = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines()]
    names, values = (line for line in lines if line[0] == "Ip:")
    return int(values[names.index("OutRequests")])


async def main(folder: Path) -> None:
    """Open them all, each in a child as the worker starts it."""
    model = package.model_directory()
    assert model is not None
    tokenizer = str(model / "tokenizer.json")
    limits = Limits(max_pages=9, max_unpacked_bytes=2**26, max_seconds=20, max_memory_bytes=2**30)
    setup = ChildSetup(
        pdf_pipeline="native", artifacts_path="", tokenizer_path=tokenizer, max_memory_bytes=2**30,
        max_output_bytes=2**26,
    )  # fmt: skip
    before, documents, child = sent(), 0, await Child.start(setup)
    for host in HOSTS:
        page = f'<!DOCTYPE a SYSTEM "{host}/a.dtd"><html><img src="{host}/a.png"><p>words</p></html>'
        relationship = (
            '<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
            '<Relationship Id="p1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/image" '
            f'Target="{host}/a.png" TargetMode="External"/></Relationships>'
        )
        word = make.docx(make.body("words"), ("word/_rels/document.xml.rels", relationship.encode()))
        file = make.one_page(make.stream(b"BT /F 12 Tf (words) Tj ET"), f"<</F ({host}/a.pdf) /FS /URL>>".encode())
        for name, content in (("a.html", page.encode()), ("a.md", f"![a]({host}/a.png)".encode()), ("a.docx", word),
                              ("a.pdf", file)):  # fmt: skip
            (folder / "document").write_bytes(content)
            if not child.usable:
                await child.close()
                child = await Child.start(setup)
            order = Order(
                document_path=str(folder / "document"),
                media_type="",
                filename=name,
                tokenizer_path=tokenizer,
                limits=limits,
            )
            async for _ in child.events(order, seconds=20):
                pass
            documents += 1
    await child.close()
    by_documents = sent() - before
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.sendto(b"one", ("127.0.0.1", 9))
    print(documents, by_documents, sent() - before)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
