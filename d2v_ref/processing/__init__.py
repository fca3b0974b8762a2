"""From real input to arrays and back: tokenizers."""

from d2v_ref.processing.tokenizer import Encoding, TextTokenizer

__all__ = ["Encoding", "TextTokenizer"]
