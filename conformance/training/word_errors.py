"""Measures tiny-audio's words through d2v_ref, greedily and with its language model, and adds that to curve.json.

    python -m conformance.training.word_errors --cache FOLDER

The splits are those of ``spoken_numbers``, whose corpus is in the cache; the search has the command line's defaults.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from conformance.training import spoken_numbers
from conformance.training.tiny_audio import Settings
from d2v_ref import models, pipeline
from d2v_ref.checkpoints import write_json
from d2v_ref.processing.ctc_decoding import NGram
from d2v_ref.tasks.metrics import word_error_rate

SPLITS = ("seen", "voices", "accent", "flite-slt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="where the corpus is kept")
    corpus = spoken_numbers.cached(parser.parse_args().cache, Settings().seed)
    folder = models.folder("tiny-audio")
    path = folder / "curve.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    recognise = pipeline("automatic-speech-recognition", folder)
    scorer = NGram.from_arpa(folder / "numbers.arpa")
    for split in SPLITS:
        part = corpus.split(split)
        truths = [utterance.text for utterance in part.utterances]
        for name, options in (("wer", {}), ("wer with numbers.arpa", {"scorer": scorer})):
            transcripts = [recognise(sound, **options)["text"] for sound in part.samples]
            facts["metrics"][f"{split} {name}"] = round(word_error_rate(transcripts, truths), 5)
            print(split, name, facts["metrics"][f"{split} {name}"], flush=True)
    write_json(path, facts)


if __name__ == "__main__":
    main()
