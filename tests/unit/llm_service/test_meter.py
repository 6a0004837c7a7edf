"""What cannot fit a model's context is refused before the engine sees it; what fits gets the room that is left."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from llm_service.generation import Generation, Message, Role, Sampling
from llm_service.meter import PromptMeter
from mesh.errors import InvalidRequest, ModelUnusable
from mesh.generation import Image, Tool, ToolCall

CONTEXT = 32


@pytest.fixture
def meter(model_path: Path) -> PromptMeter:
    """One token a word, a context of 32."""
    return PromptMeter(model_path / "tokenizer.json", CONTEXT)


def prompt(words: int) -> Generation:
    """A raw prompt of so many tokens."""
    return Generation(prompt="word " * words)


def chat(*words: int) -> Generation:
    """A chat with messages of so many tokens."""
    return Generation(messages=tuple(Message(Role.USER, "word " * count) for count in words))


@pytest.mark.parametrize(
    ("words", "asked", "given"), [(10, None, 20), (10, 5, 5), (10, 20, 20), (20, None, 12), (20, 20, 12), (31, 9, 1)]
)
async def test_max_tokens_is_what_was_asked_and_fits(
    meter: PromptMeter, words: int, asked: int | None, given: int
) -> None:
    """max_tokens is the wish or the default, cut to the room behind the prompt."""
    request = Generation(prompt="word " * words, sampling=Sampling(max_tokens=asked))
    fitted = await meter.fit(request, max_output_tokens=20)
    assert given == fitted.sampling.max_tokens


@pytest.mark.parametrize("request_", [prompt(32), prompt(5000), chat(20, 12), chat(4000)])
async def test_a_prompt_that_leaves_no_room_is_refused(meter: PromptMeter, request_: Generation) -> None:
    """A full context is CONTEXT_OVERFLOW and names the field."""
    with pytest.raises(InvalidRequest) as caught:
        await meter.fit(request_, max_output_tokens=20)
    assert caught.value.reason == "CONTEXT_OVERFLOW"
    assert caught.value.param == ("prompt" if request_.prompt else "messages")


async def test_a_huge_prompt_is_refused_without_counting(meter: PromptMeter) -> None:
    """Ten million characters cannot be 32 tokens, and nobody counts them to know."""
    with pytest.raises(InvalidRequest, match="does not fit"):
        await meter.fit(Generation(prompt="x" * 10_000_000), max_output_tokens=20)


async def test_what_the_template_adds_is_learnt(meter: PromptMeter) -> None:
    """Two counted chats tell what the template adds to a chat and to each message."""
    meter.calibrate([(chat(1), 1 + 5 + 3), (chat(1, 1, 1), 3 + 5 + 3 * 3)])
    fitted = await meter.fit(chat(10, 5), max_output_tokens=100)
    assert fitted.sampling.max_tokens == CONTEXT - (15 + 5 + 2 * 3)


async def test_one_sample_is_enough(meter: PromptMeter) -> None:
    """A template that refused the longer sample still gives the fixed part."""
    meter.calibrate([(chat(1), 9)])
    assert (await meter.fit(chat(10), max_output_tokens=100)).sampling.max_tokens == CONTEXT - 18


async def test_without_a_known_context_nothing_is_refused(model_path: Path) -> None:
    """A model that states no context gets what was asked."""
    unlimited = PromptMeter(model_path / "tokenizer.json", 0)
    assert (await unlimited.fit(prompt(5000), max_output_tokens=20)).sampling.max_tokens == 20


def test_a_broken_tokenizer_is_the_models_fault(model_path: Path) -> None:
    """A tokenizer file that cannot be read is a ModelUnusable."""
    (model_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelUnusable):
        PromptMeter(model_path / "tokenizer.json", CONTEXT)


WORDS = "word " * 10


@pytest.mark.parametrize(
    "request_",
    [
        Generation(messages=(Message(Role.USER, parts=(WORDS, Image(b"x", "image/png"), WORDS)),)),
        Generation(messages=(Message(Role.ASSISTANT, tool_calls=(ToolCall("c", "look", WORDS * 2),)),)),
        Generation(messages=(Message(Role.USER, "word"),), tools=(Tool("look", WORDS * 2),)),
        Generation(messages=(Message(Role.USER, "word"),), tools=(Tool("look", parameters=WORDS * 2),)),
    ],
    ids=["parts", "calls", "a tool's description", "a tool's schema"],
)
async def test_all_that_the_model_reads_is_counted(model_path: Path, request_: Generation) -> None:
    """Twenty words are twenty tokens, wherever in the request they stand; they leave less room, or none."""
    meter = PromptMeter(model_path / "tokenizer.json", 100)
    assert await meter.count(request_) >= 20
    room = (await meter.fit(request_, max_output_tokens=100)).sampling.max_tokens
    assert room is not None
    assert room <= 80
    with pytest.raises(InvalidRequest, match="does not fit"):
        await PromptMeter(model_path / "tokenizer.json", 20).fit(request_, max_output_tokens=20)


class Watched(PromptMeter):
    """A meter that says how much it has looked at."""

    looked_at = 0

    def _count(self, texts: list[str]) -> int:
        self.looked_at += sum(map(len, texts))
        return super()._count(texts)


@pytest.fixture
def long_tokens(tmp_path: Path) -> Path:
    """A tokenizer with one very long token: nothing can be told from a text's length."""
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "word": 1, "x" * 1_000_000: 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


async def test_a_long_prompt_is_looked_at_only_as_far_as_it_takes(long_tokens: Path) -> None:
    """Who fits ten thousand tokens into a million characters too many costs no more than ten thousand tokens."""
    meter = Watched(long_tokens, 10_000)
    with pytest.raises(InvalidRequest, match="does not fit"):
        await meter.fit(prompt(1_000_000), max_output_tokens=20)
    assert meter.looked_at < 100_000


async def test_a_long_prompt_is_counted_to_its_end_where_its_length_is_asked(long_tokens: Path) -> None:
    """In slices that are cut between words, so that the count is the same."""
    assert await PromptMeter(long_tokens, 10_000).count(prompt(200_000)) == 200_000
