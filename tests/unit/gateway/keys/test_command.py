"""``./scripts/keys.sh``: make, rotate, revoke, show."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gateway.keys.__main__ import main
from gateway.keys.book import read
from gateway.keys.form import digest_of, id_of
from gateway.keys.records import KeyRecord, Limits, Role


class Command:
    """The command, on a file of its own."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self._capsys = capsys
        self.said = ""

    def __call__(self, *words: str, code: int = 0) -> str:
        """What it prints to standard output; what else it says is in ``said``."""
        assert main(["--file", str(self.path), *words], {}) == code
        printed = self._capsys.readouterr()
        self.said = printed.err
        return printed.out.strip()

    def record(self, key: str) -> KeyRecord:
        """What the file says of a key."""
        return next(record for record in read(self.path) if record.digest == digest_of(key))


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """See Command."""
    return Command(tmp_path / "keys.json", capsys)


def test_a_key_is_printed_once_and_kept_nowhere(command: Command) -> None:
    """Alone on standard output, so that a script can take it; the file has its hash."""
    key = command("add", "--tenant", "search")
    assert id_of(key)
    assert key not in command.path.read_text()
    assert key not in command.said
    assert "GATEWAY_KEYS__FILE" in command.said
    made = command.record(key)
    assert (made.id, made.account, made.tenant) == (id_of(key), id_of(key), "search")
    assert (made.roles, made.limits, made.expires) == (frozenset({Role.INFERENCE}), Limits(), None)


def test_a_key_has_the_roles_limits_and_end_that_are_asked_for(command: Command) -> None:
    """Each on its own; what is not named is the gateway's to say."""
    key = command("add", "--tenant", "ops", "--role", "operator", "--role", "inference", "--expires-in", "90d",
                  "--tokens-per-minute", "1000", "--max-body-bytes", "4096")  # fmt: skip
    made = command.record(key)
    assert made.roles == frozenset(Role)
    assert made.limits == Limits(tokens_per_minute=1000, max_body_bytes=4096)
    assert made.expires == made.created + 90 * 86400


def test_a_rotation_lets_both_keys_in_for_a_while_on_one_account(command: Command) -> None:
    """The new one has the old one's roles, limits and account; the old one ends after the overlap."""
    old = command("add", "--tenant", "search", "--requests-per-minute", "7")
    new = command("rotate", id_of(old) or "", "--overlap", "2h")
    before, after = command.record(old), command.record(new)
    now = time.time()
    assert before.usable(now)
    assert after.usable(now)
    assert before.expires is not None
    assert abs(before.expires - (now + 7200)) < 60
    assert (after.account, after.limits, after.roles, after.tenant) == (
        before.account, before.limits, before.roles, before.tenant,
    )  # fmt: skip
    assert after.expires is None
    third = command("rotate", new)  # the key itself means its id
    assert command.record(third).account == before.account


def test_a_rotation_never_lengthens_the_old_keys_life(command: Command) -> None:
    """An overlap past its end changes nothing."""
    old = command("add", "--tenant", "search", "--expires-in", "1h")
    ends = command.record(old).expires
    command("rotate", old, "--overlap", "5d")
    assert command.record(old).expires == ends


def test_a_revoked_key_is_shown_as_such_and_cannot_be_rotated(command: Command) -> None:
    """It stays in the file: when it was revoked is worth knowing."""
    key = command("add", "--tenant", "search", "--requests-per-minute", "7")
    assert "in use" in command("list")
    command("revoke", key)
    shown = command("list")
    assert f"{id_of(key)}" in shown
    assert "revoked 2" in shown
    assert "requests_per_minute=7" in shown
    command("rotate", key, code=1)
    assert "no usable key" in command.said


def test_a_mistake_is_told_and_changes_nothing(command: Command) -> None:
    """An id that there is not, and a file that is none."""
    command("add", "--tenant", "search")
    before = command.path.read_text()
    command("revoke", "nobody", code=1)
    assert "nobody" in command.said
    assert command.path.read_text() == before
    command.path.write_text("{}")
    command("add", "--tenant", "search", code=1)
    assert "version and keys" in command.said


@pytest.mark.parametrize(
    "words",
    [["add"], ["add", "--tenant", "a b"], ["add", "--tenant", "a", "--role", "admin"],
     ["add", "--tenant", "a", "--expires-in", "90"], ["add", "--tenant", "a", "--requests-per-minute", "0"], []],
)  # fmt: skip
def test_nonsense_is_refused_before_anything_is_made(command: Command, words: list[str]) -> None:
    """No file, and no key."""
    with pytest.raises(SystemExit):
        command(*words)
    assert not command.path.exists()


def test_the_file_is_the_gateways_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The variable that tells the gateway tells the command too; else it lies in the mesh's home."""
    main(["add", "--tenant", "a"], {"GATEWAY_KEYS__FILE": str(tmp_path / "one.json")})
    main(["add", "--tenant", "a"], {"MESH_HOME": str(tmp_path / "home")})
    assert len(read(tmp_path / "one.json")) == len(read(tmp_path / "home" / "keys.json")) == 1
    assert capsys.readouterr().out.count("mesh_") == 2
