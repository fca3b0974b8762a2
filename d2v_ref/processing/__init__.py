"""From real input to arrays and back: sound files, feature extractors, tokenizers, CTC decoding."""

from d2v_ref.processing.ctc_tokenizer import Wav2Vec2CTCTokenizer
from d2v_ref.processing.feature_extractor import AudioFeatures, Wav2Vec2FeatureExtractor
from d2v_ref.processing.sound_files import read_audio, stream_audio
from d2v_ref.processing.tokenizer import Encoding, TextTokenizer

__all__ = [
    "AudioFeatures",
    "Encoding",
    "TextTokenizer",
    "Wav2Vec2CTCTokenizer",
    "Wav2Vec2FeatureExtractor",
    "read_audio",
    "stream_audio",
]
