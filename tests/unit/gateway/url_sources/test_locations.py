"""URLs that programs could understand differently are not understood at all."""

from __future__ import annotations

import pytest

from gateway.url_sources.locations import MAX_URL_CHARACTERS, read_url
from mesh.errors import InvalidRequest


@pytest.mark.parametrize(
    ("url", "host", "port", "target", "authority"),
    [
        ("https://example.com", "example.com", 443, "/", "example.com"),
        ("HTTPS://Example.COM./a/b.pdf?x=1&y=2#part", "example.com", 443, "/a/b.pdf?x=1&y=2", "example.com"),
        ("http://example.com:8080/?q", "example.com", 8080, "/?q", "example.com:8080"),
        ("https://93.184.215.14/a", "93.184.215.14", 443, "/a", "93.184.215.14"),
        ("https://[2606:4700::1111]:444/a", "2606:4700::1111", 444, "/a", "[2606:4700::1111]:444"),
        ("https://xn--mnchen-3ya.example/%C3%A4.txt", "xn--mnchen-3ya.example", 443, "/%C3%A4.txt", None),
    ],
)
def test_a_plain_url_is_read(url: str, host: str, port: int, target: str, authority: str | None) -> None:
    """Names in lower case, ports always said, the fragment left out."""
    location = read_url(url)
    assert (location.host, location.port, location.target) == (host, port, target)
    assert location.authority == (authority or host)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com/a.pdf",
        "//example.com/a.pdf",
        "file:///etc/passwd",
        "gopher://example.com/_GET",
        "ftp://example.com/a.pdf",
        "dict://example.com:11211/stat",
        "data:text/plain,words",
        "jar:https://example.com!/a",
        "https:example.com",
        "https:/example.com",
        "https:///example.com",
        "https://",
        "https://:443/",
        "https://user@example.com/",
        "https://user:password@example.com/",
        "https://example.com@127.0.0.1/",
        "https://example.com\\@127.0.0.1/",
        "https://127.0.0.1\\.example.com/",
        "https://example.com\\a",
        "https://exa mple.com/",
        "https://example.com/a b",
        "https://example.com/\r\nX-Injected: 1",
        "https://example.com/\x00",
        "https://example.com:99999/",
        "https://example.com:-1/",
        "https://example.com:8o/",
        "https://%31%32%37.0.0.1/",
        "https://127.0.0.1%00.example.com/",
        "https://[::1",
        "https://[fe80::1%25eth0]/",
        "https://[::1].example.com/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://017700000001/",
        "https://0177.0.0.1/",
        "https://0x7f.0.0.1/",
        "https://127.1/",
        "https://127.0.1/",
        "https://127.0.0.01/",
        "https://example.com.0x1/",
        "https://example.1/",
        "https://localh\u00f6st/",
        "https://\u2460\u2461\u2466.0.0.1/",
        "https://\uff11\uff12\uff17.0.0.1/",
        "https://127\u30020\u30020\u30021/",
        "https://example.com\u2025@127.0.0.1/",
        "https://-example.com/",
        "https://example..com/",
        "https://exa$mple.com/",
        f"https://{'a' * 64}.example/",
        f"https://example.com/{'a' * MAX_URL_CHARACTERS}",
    ],
)
def test_what_programs_differ_about_is_refused(url: str) -> None:
    """Other schemes, users, backslashes, encoded or other letters, addresses in octal, hex, decimal or short form."""
    with pytest.raises(InvalidRequest) as refused:
        read_url(url)
    assert refused.value.reason == "URL_INVALID"
    assert "passw" not in refused.value.message.replace("no password", "")


@pytest.mark.parametrize(
    ("reference", "leads_to"),
    [
        ("/b.pdf", "https://example.com:444/b.pdf"),
        ("c.pdf", "https://example.com:444/a/c.pdf"),
        ("//other.example/d", "https://other.example/d"),
        ("http://other.example/e", "http://other.example/e"),
        ("", "https://example.com:444/a/b?x"),
    ],
)
def test_a_redirect_is_read_like_every_url(reference: str, leads_to: str) -> None:
    """Relative to where it came from, and as strictly."""
    location = read_url("https://example.com:444/a/b?x").follow(reference)
    assert f"{location.scheme}://{location.authority}{location.target}" == leads_to


@pytest.mark.parametrize(
    "reference", ["file:///etc/passwd", "\\\\127.0.0.1\\a", "https://u@127.0.0.1/", "http://0x7f.1/"]
)
def test_a_redirect_to_nonsense_is_refused(reference: str) -> None:
    """No way out through another server's Location."""
    with pytest.raises(InvalidRequest):
        read_url("https://example.com/").follow(reference)


@pytest.mark.parametrize(
    ("url", "name"),
    [("https://a.example/b/c%20d.pdf?e=f.txt", "c d.pdf"), ("https://a.example/", ""), ("https://a.example/b/", "b")],
)
def test_the_file_is_named_by_the_path(url: str, name: str) -> None:
    """Its last part, decoded; the query has no say."""
    assert read_url(url).filename == name
