"""What a key looks like, and the file that its hash lies in."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.keys.book import KeyBookError, as_text, changing, parse, read, revoked
from gateway.keys.form import digest_of, id_of, new_key
from gateway.keys.records import KeyRecord, Limits, Role

NOW = 1_763_000_000


def record(**given: Any) -> KeyRecord:
    """Some key."""
    usual: dict[str, Any] = {
        "id": "abcdefghij",
        "tenant": "team-a",
        "roles": frozenset({Role.INFERENCE}),
        "digest": bytes(range(32)),
        "account": "abcdefghij",
        "limits": Limits(requests_per_minute=5),
        "created": NOW,
    }
    return KeyRecord(**{**usual, **given})


def test_keys_are_made_to_be_found_and_told_apart() -> None:
    """The prefix, the id that they were made with, 256 bits of secret, and no two alike."""
    keys = [new_key() for _ in range(100)]
    for key, key_id in keys:
        assert key.startswith(f"mesh_{key_id}_")
        assert id_of(key) == key_id
        assert len(key) == 65
    assert len({key for key, _ in keys}) == len({key_id for _, key_id in keys}) == 100


@given(position=st.integers(0, 64), letter=st.sampled_from("0aZ_-é \n"))
def test_a_slip_of_the_pen_is_no_key(position: int, letter: str) -> None:
    """One wrong letter anywhere, or a cut, and the checksum does not fit."""
    key, _ = new_key()
    wrong = key[:position] + letter + key[position + 1 :]
    assert wrong == key or id_of(wrong) is None
    assert id_of(key[:position]) is None
    assert id_of(key + letter) is None


def test_what_is_kept_is_no_key() -> None:
    """The digest differs for each key, and is not the key."""
    key, _ = new_key()
    assert len(digest_of(key)) == 32
    assert digest_of(key) == digest_of(key) != digest_of(key[:-1])


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """All of a key, times to the second; the file is its owner's alone."""
    path = tmp_path / "deep" / "keys.json"
    keys = [
        record(),
        record(id="k2", account="abcdefghij", roles=frozenset(Role), limits=Limits(), expires=NOW + 5, revoked=NOW),
    ]
    with changing(path) as records:
        records.extend(keys)
    assert list(read(path)) == keys
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_change_that_fails_changes_nothing(tmp_path: Path) -> None:
    """The old file stays as it is, with the mode that its owner gave it; afterwards it can be changed."""
    path = tmp_path / "keys.json"
    with changing(path) as records:
        records.append(record())
    path.chmod(0o640)
    before = path.read_text()
    with pytest.raises(RuntimeError):
        with changing(path) as records:
            records.clear()
            raise RuntimeError
    assert path.read_text() == before
    with changing(path) as records:
        records[:] = revoked(records, "abcdefghij", now=NOW + 1)
    assert read(path)[0].revoked == NOW + 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_a_changed_file_belongs_to_whom_it_belonged(tmp_path: Path) -> None:
    """A gateway that runs as another user still reads it: otherwise it would go on with the key that was revoked."""
    path = tmp_path / "keys.json"
    with changing(path) as records:
        records.append(record())
    os.chown(path, 10001, 10002)
    with changing(path) as records:
        records[:] = revoked(records, "abcdefghij", now=NOW)
    after = path.stat()
    assert (after.st_uid, after.st_gid, stat.S_IMODE(after.st_mode)) == (10001, 10002, 0o600)


def test_revoking_twice_keeps_the_first_time_and_a_wrong_id_is_told() -> None:
    """When it happened is of use to whoever looks for a leak."""
    once = revoked([record()], "abcdefghij", now=NOW)
    assert revoked(once, "abcdefghij", now=NOW + 99) == once
    with pytest.raises(KeyBookError, match="no key nobody"):
        revoked([record()], "nobody", now=NOW)


def changed(path: str, value: Any) -> str:
    """The text of a file with one thing in it that is otherwise; ``...`` takes it out."""
    document = json.loads(as_text([record()]))
    *above, name = path.split(".")
    place: Any = document
    for part in above:
        place = place[int(part) if part.isdigit() else part]
    if value is ...:
        del place[name]
    else:
        place[name] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("version", 2, "version 1"),
        ("owner", "me", "version and keys"),
        ("keys", {}, "list"),
        ("keys.0.role", ["operator"], "no field role"),
        ("keys.0.limits.requests_per_second", 5, "no field requests_per_second"),
        ("keys.0.limits.requests_per_minute", 0, "above 0"),
        ("keys.0.limits.requests_per_minute", True, "above 0"),
        ("keys.0.limits.requests_per_minute", "5", "above 0"),
        ("keys.0.limits", 5, "object"),
        ("keys.0.roles", [], "roles"),
        ("keys.0.roles", ["admin"], "roles"),
        ("keys.0.roles", [["operator"]], "roles"),
        ("keys.0.roles", "operator", "roles"),
        ("keys.0.tenant", "a b", "tenant"),
        ("keys.0.tenant", "x" * 65, "tenant"),
        ("keys.0.tenant", "a\n", "tenant"),
        ("keys.0.id", "A", "id"),
        ("keys.0.sha256", "ff", "64 hexadecimal"),
        ("keys.0.expires", "2030-01-01T00:00:00", "time"),
        ("keys.0.expires", 7, "time"),
        ("keys.0.created", None, "time"),
        ("keys.0.sha256", ..., "lacks sha256"),
        ("keys.0", 5, "object"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_place(path: str, value: Any, told: str) -> None:
    """A misspelt limit that is silently ignored is found in production; a role that nobody knows opens nothing."""
    text = json.dumps({"version": 1, "keys": [value]}) if path == "keys.0" else changed(path, value)
    with pytest.raises(KeyBookError, match=told):
        parse(text)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"keys"'])
def test_what_is_no_file_of_keys_is_refused(text: str) -> None:
    """Whatever JSON it is, or is not."""
    with pytest.raises(KeyBookError):
        parse(text)


def test_two_keys_with_one_id_are_refused() -> None:
    """One of them would never be found."""
    with pytest.raises(KeyBookError, match="one id"):
        parse(as_text([record(), record()]))
