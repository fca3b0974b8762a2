"""From real input to arrays and back: sound files, pictures, tokenizers, CTC decoding, label maps."""

from d2v_ref.processing.ctc_tokenizer import Wav2Vec2CTCTokenizer
from d2v_ref.processing.feature_extractor import AudioFeatures, Wav2Vec2FeatureExtractor
from d2v_ref.processing.image_processor import BeitImageProcessor, ImageFeatures
from d2v_ref.processing.segmentation_maps import post_process_semantic_segmentation
from d2v_ref.processing.sound_files import read_audio, stream_audio
from d2v_ref.processing.tokenizer import Encoding, TextTokenizer

__all__ = [
    "AudioFeatures",
    "BeitImageProcessor",
    "Encoding",
    "ImageFeatures",
    "TextTokenizer",
    "Wav2Vec2CTCTokenizer",
    "Wav2Vec2FeatureExtractor",
    "post_process_semantic_segmentation",
    "read_audio",
    "stream_audio",
]
