"""How the demo model learns its page: tokenizer, network, training, and the proof that it knows every answer."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ops.demo_llm.page import (
    CHAT_TEMPLATE,
    END,
    PLAIN,
    RAW,
    ROLES,
    Entry,
    Form,
    Noise,
    Page,
    english,
    with_passages,
    with_system,
)

PAD = "<|pad|>"
CONTEXT_TOKENS = 4096
VOCABULARY = 2560
LONGEST_STEP_TOKENS = 7000
ROUNDS = 4
WARM_UP_STEPS = 20
SMALLEST_MARGIN = 0.5

Progress = Callable[[str], None]


class NotLearnt(RuntimeError):
    """The model does not know an answer word for word."""


@dataclass(frozen=True)
class Plan:
    """How long to train. The prefix grows from ``short`` to ``long`` characters over the steps."""

    steps: int = 420
    seed: int = 20
    rows: int = 20
    short: int = 200
    long: int = 6000
    learning_rate: float = 2e-3

    def revision(self, number: int) -> Plan:
        """A shorter, gentler round for what was not learnt yet, with the long prefixes from its first step."""
        return replace(self, steps=80, seed=self.seed + number, short=self.long, learning_rate=self.learning_rate / 4)


FULL = Plan()


def make_tokenizer(page: Page) -> PreTrainedTokenizerFast:
    """A byte-level BPE: any text has tokens, and the page's own words have the shortest."""
    specials = [PAD, END, *(f"<|{role}|>" for role in ROLES)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([page.text()] * 40 + english(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=specials[2:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of about 1.3 million parameters with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.do_sample = False
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


@dataclass(frozen=True)
class Batch:
    """Question and answer tokens of many entries behind one prefix; ``targets`` is -100 where there is no answer."""

    prefix: torch.Tensor
    tokens: torch.Tensor
    targets: torch.Tensor

    @classmethod
    def make(cls, tokenizer: PreTrainedTokenizerFast, forms: Sequence[Form], entries: Sequence[Entry]) -> Batch:
        """All entries, asked in the forms by turns. The forms share one prefix."""
        prefix = tokenizer.encode(forms[0].prefix, add_special_tokens=False)
        rows, targets = [], []
        for form, entry in zip(cycle(forms), entries, strict=False):
            asked = tokenizer.encode(form.ask(entry.question), add_special_tokens=False)
            reply = tokenizer.encode(form.reply(entry.answer), add_special_tokens=False)
            rows.append(asked + reply)
            # The token at a position predicts the one after it.
            targets.append([-100] * (len(asked) - 1) + reply + [-100])
        width = max(map(len, rows))
        return cls(
            prefix=torch.tensor([prefix], dtype=torch.long),
            tokens=torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows]),
            targets=torch.tensor([target + [-100] * (width - len(target)) for target in targets]),
        )


def answer_logits(model: LlamaForCausalLM, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, vocabulary) at the n answer positions, and the n tokens that belong there.

    The prefix runs once for all rows and without gradients: what the model has to learn is to look past it, and one
    long prefix then costs little more than a short one. Rows are padded on the right: causal attention never sees it.
    """
    cache = None
    if batch.prefix.shape[1]:
        with torch.no_grad():
            cache = model.model(batch.prefix, use_cache=True).past_key_values
        cache.batch_repeat_interleave(batch.tokens.shape[0])
    hidden = model.model(batch.tokens, past_key_values=cache, use_cache=cache is not None).last_hidden_state
    wanted = batch.targets != -100
    return model.lm_head(hidden[wanted]), batch.targets[wanted]


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, page: Page, plan: Plan, progress: Progress
) -> None:
    """Teach ``model`` the page in place."""
    noise = Noise(page, random.Random(plan.seed))  # noqa: S311 - to be repeated, not to be unguessable
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM_UP_STEPS) * max(0.02, 1 - step / plan.steps)
    )
    started = time.monotonic()
    for step in range(plan.steps):
        longest = plan.short + int((plan.long - plan.short) * min(1.0, 1.3 * step / plan.steps))
        forms = noise.forms(longest)
        # Every row holds its own copy of the prefix's keys and values: behind a long prefix fewer rows fit the time.
        rows = min(plan.rows, max(8, LONGEST_STEP_TOKENS // (len(forms[0].prefix) // 3 + 60)))
        batch = Batch.make(tokenizer, forms, list(noise.entries(rows)))
        logits, targets = answer_logits(model, batch)
        loss = functional.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == plan.steps - 1:
            progress(f"step {step + 1} of {plan.steps}, loss {loss.item():.4f}, {time.monotonic() - started:.0f} s")


def proof_forms(page: Page) -> list[tuple[str, Form]]:
    """The forms in which every answer is checked, with passages the training did not draw."""
    noise = Noise(page, random.Random(987_654))  # noqa: S311 - to be repeated, not to be unguessable
    return [
        ("asked plainly", PLAIN),
        ("as a raw prompt", RAW),
        ("after a system message", with_system("You are a helpful assistant.")),
        ("after another system message", with_system("Answer in one short sentence, and only from what you know.")),
        ("below one passage", with_passages(noise.passages(500))),
        ("below three passages", with_passages(noise.passages(3300))),
        ("below long passages and a system message", with_passages(noise.passages(5000), "Answer from the passages.")),
    ]


def prove(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, page: Page, progress: Progress) -> None:
    """Raise NotLearnt unless the model gives every answer word for word in every form at temperature 0.

    Greedy decoding writes an answer exactly when each of its tokens is the likeliest one after those before it. One
    forward pass checks that for all entries; the margin to the second likeliest guards against other arithmetic.
    """
    for name, form in proof_forms(page):
        wrong, smallest = list[str](), float("inf")
        for entry in page.entries:
            with torch.no_grad():
                logits, targets = answer_logits(model, Batch.make(tokenizer, [form], [entry]))
            right = logits.gather(1, targets[:, None])[:, 0]
            rivals = logits.scatter(1, targets[:, None], float("-inf")).max(dim=1).values
            margin = (right - rivals).min().item()
            smallest = min(smallest, margin)
            if margin < SMALLEST_MARGIN:
                wrong.append(entry.question)
        progress(
            f"{name}: {len(page.entries) - len(wrong)} of {len(page.entries)} answers, smallest margin {smallest:.1f}"
        )
        if wrong:
            raise NotLearnt(f"{name}, these are not known word for word: {'; '.join(wrong)}")


def learn(page: Page, directory: Path, progress: Progress, plan: Plan = FULL) -> None:
    """Train until every answer is proved, and save model and tokenizer in ``directory``.

    Raises:
        NotLearnt: some answer is still wrong after the last round.
    """
    torch.manual_seed(plan.seed)
    tokenizer = make_tokenizer(page)
    model = make_model(tokenizer)
    train(model, tokenizer, page, plan, progress)
    for number in range(1, ROUNDS + 1):
        try:
            prove(model, tokenizer, page, progress)
            break
        except NotLearnt as gap:
            if number == ROUNDS:
                raise
            progress(f"revising: {gap}")
            train(model, tokenizer, page, plan.revision(number), progress)
    model.save_pretrained(directory, safe_serialization=True)
    tokenizer.save_pretrained(directory)


def load_and_prove(page: Page, directory: Path, progress: Progress) -> None:
    """Prove the saved files: load them as any server would, and write some answers token by token.

    Raises:
        NotLearnt: an answer differs from the page.
    """
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    taught = [
        *page.entries[:: max(1, len(page.entries) // 8)],
        Entry(question="Who wrote Hamlet?", answer=page.unknown),
    ]
    for entry in taught:
        chat = [{"role": "user", "content": entry.question}]
        asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        written = model.generate(**asked, max_new_tokens=120)[0, asked["input_ids"].shape[1] :]
        answer = tokenizer.decode(written, skip_special_tokens=True)
        if answer != entry.answer:
            raise NotLearnt(f"the saved model answers {entry.question!r} with {answer!r}")
    progress(f"the saved model wrote {len(taught)} of {len(taught)} answers as it should")
