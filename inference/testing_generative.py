"""A small language model that reranks, for tests: made in a moment, and taught its golden questions where wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from inference.profiles import RerankingProfile

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_chat_tokenizer(path: Path, *texts: str) -> Tokenizer:
    """A byte-level ``tokenizer.json`` with Qwen's special tokens, in which "yes" and "no" are whole."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts * 3, *("yes", "no") * 50], trainer)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    stated = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": SPECIAL_TOKENS[0], "padding_side": "left"}
    (path / "tokenizer_config.json").write_text(json.dumps(stated), encoding="utf-8")
    return tokenizer


def write_language_model(path: Path, profile: RerankingProfile, *, steps: int = 0, positions: int = 512) -> Path:
    """A Qwen3 of two narrow layers that reads ``positions`` tokens, trained for ``steps`` on the profile's questions.

    Untrained it answers at random. Needs torch and transformers.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    texts = [text for pair in profile.golden for text in (pair.query, pair.relevant, pair.irrelevant)]
    tokenizer = write_chat_tokenizer(path, *profile.template, *texts)
    torch.manual_seed(4)
    model: Any = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=positions,
            pad_token_id=0,
            tie_word_embeddings=True,
        )
    )
    _train(model, tokenizer, profile, steps)
    model.save_pretrained(path)
    return path


def _train(model: Any, tokenizer: Tokenizer, profile: RerankingProfile, steps: int) -> None:
    import torch

    from inference.prompted import PromptTokenizer
    from inference.tokenizing import Truncation

    prompts = PromptTokenizer(tokenizer, profile, name="tiny", max_tokens=model.config.max_position_embeddings)
    lessons = [
        (torch.tensor([inputs.ids]), torch.tensor([answer]))
        for pair in profile.golden
        for inputs, answer in zip(
            prompts.pairs(pair.query, (pair.relevant, pair.irrelevant), Truncation.END).inputs,
            (prompts.answers.yes, prompts.answers.no or 0),
            strict=True,
        )
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(steps):
        losses = [torch.nn.functional.cross_entropy(model(ids).logits[:, -1], answer) for ids, answer in lessons]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
    model.eval()
