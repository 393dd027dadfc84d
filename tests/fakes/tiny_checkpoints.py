"""Checkpoints with random weights, of the families that are converted: of no use for anything but converting them.

Run by the Python of a build environment: ``python tiny_checkpoints.py KIND FOLDER TEXT``. Writes the
checkpoint, and ``FOLDER.npz`` with token ids and the logits that torch gives for them.
"""

import sys
from pathlib import Path


def main(kind, folder, text):
    import numpy as np
    import torch
    import transformers as hf

    torch.manual_seed(0)
    folder.mkdir()
    lines = [line for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
    size = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    if kind == "gemma3":
        words = _sentencepiece(folder, lines, pad_id=0, eos_id=1, bos_id=2, unk_id=3)
        tokenizer = hf.GemmaTokenizer(str(folder / "tokenizer.model"))
        model = hf.Gemma3ForCausalLM(
            hf.Gemma3TextConfig(
                vocab_size=words, num_hidden_layers=7, head_dim=32, query_pre_attn_scalar=32, sliding_window=32,
                max_position_embeddings=512, pad_token_id=0, eos_token_id=1, bos_token_id=2, **size,
            )
        )  # fmt: skip
    elif kind == "phi3":
        words = _sentencepiece(folder, lines, unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
        tokenizer = hf.LlamaTokenizer(str(folder / "tokenizer.model"))
        # llama.cpp looks for this one in every Phi-3.
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>", "<|end|>"]})
        model = hf.Phi3ForCausalLM(
            hf.Phi3Config(
                vocab_size=words + 8, num_hidden_layers=3, max_position_embeddings=512, sliding_window=256,
                original_max_position_embeddings=512, pad_token_id=0, eos_token_id=2, bos_token_id=1, **size,
            )
        )  # fmt: skip
    elif kind == "gpt_neox":
        tokenizer = _byte_level(lines)
        size.pop("num_key_value_heads")
        model = hf.GPTNeoXForCausalLM(
            hf.GPTNeoXConfig(
                vocab_size=len(tokenizer), num_hidden_layers=2, max_position_embeddings=512, eos_token_id=0,
                bos_token_id=0, **size,
            )
        )  # fmt: skip
    else:
        tokenizer = _byte_level(lines)
        model = hf.LlamaForCausalLM(
            hf.LlamaConfig(
                vocab_size=len(tokenizer), num_hidden_layers=2, max_position_embeddings=512, eos_token_id=0,
                bos_token_id=0, pad_token_id=0, tie_word_embeddings=True, **size,
            )
        )  # fmt: skip
    for name, values in model.named_parameters():
        mean, width = (0.2 if kind == "gemma3" else 1.0, 0.2) if "norm" in name else (0.0, 0.05)
        values.data.normal_(mean, width)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ids = torch.randint(5, model.config.vocab_size - 16, (1, 96))
    with torch.no_grad():
        np.savez(f"{folder}.npz", ids=ids[0].numpy(), logits=model(ids).logits[0].numpy())


def _sentencepiece(folder, lines, **ids):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / "tokenizer"), vocab_size=600, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2, **ids,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).vocab_size()


def _byte_level(lines):
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(lines, vocab_size=600, special_tokens=["<|end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<|end|>", pad_token="<|end|>")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
