"""What the command line means."""

from __future__ import annotations

import pytest

from bench.options import PARTS, parse
from bench.subject import CannotMeasure, Subject, find
from ops.local.status import HopState, MeshState


def test_nothing_named_means_everything() -> None:
    """``python -m bench`` and ``python -m bench all`` measure all parts."""
    assert parse([]).parts == parse(["all"]).parts == PARTS


def test_parts_are_measured_in_their_own_order() -> None:
    """The order of the words on the command line does not matter."""
    assert parse(["rerank", "gateway"]).parts == ("gateway", "rerank")


def test_quick_measures_less_unless_told_otherwise() -> None:
    """Quick changes the defaults, and a figure that is named stands above it."""
    thorough, quick = parse([]), parse(["--quick"])
    assert quick.rounds < thorough.rounds
    assert quick.seconds < thorough.seconds
    assert parse(["--quick", "--seconds", "3", "--rounds", "7"]).seconds == 3
    assert parse(["--quick", "--rounds", "7"]).rounds == 7


@pytest.mark.parametrize("wrong", [["embeding"], ["--rounds", "0"], ["--seconds", "0"], ["--seconds", "nan"]])
def test_nonsense_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt part or an impossible figure ends with a message instead of a measurement."""
    with pytest.raises(SystemExit):
        parse(wrong)
    assert "error" in capsys.readouterr().err


def test_without_a_mesh_the_start_script_is_named() -> None:
    """Whoever forgot to start the mesh is told how."""
    with pytest.raises(CannotMeasure, match=r"start_torch_isolation\.sh"):
        find("http://127.0.0.1:8000", lambda url: MeshState(ready=False, error=f"{url} does not answer"))


def test_a_hop_that_does_not_serve_gives_its_reason() -> None:
    """The reason that the mesh gives is passed on, with where to look."""
    hop = HopState(name="llm", endpoints=("127.0.0.1:50054",), reason="The model is missing.")
    subject = Subject("http://127.0.0.1:8000", {"llm": hop})
    with pytest.raises(CannotMeasure, match="The model is missing"):
        subject.serving("llm")
    with pytest.raises(CannotMeasure, match="embedding does not serve"):
        subject.serving("embedding")


def test_workers_are_reached_where_the_gateway_reaches_them() -> None:
    """The gateway's endpoints are the default, and a wish stands above them."""
    hop = HopState(name="embedding", endpoints=("a:1", "b:2"), serving=True)
    subject = Subject("http://127.0.0.1:8000", {"embedding": hop})
    assert subject.target("embedding", "") == "a:1,b:2"
    assert subject.target("embedding", "c:3") == "c:3"
