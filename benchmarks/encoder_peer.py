"""Embeds texts with sentence-transformers: runs in the environment of ``scripts/peer_environment.py torch``.

Takes one JSON object a line, ``{"texts": [...], "batch": n, "repeat": n}``, and answers with
``{"seconds": [...], "vectors": [...]}``: a time for each pass over the texts, and the vectors of the last.
"""

from __future__ import annotations

import json
import sys
import time

sys.path.append(sys.path.pop(0))  # in this folder is our onnx.py

from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found,unused-ignore]


def main() -> None:
    model = SentenceTransformer(sys.argv[1], device="cpu")
    model.max_seq_length = 256
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        ask = json.loads(line)
        texts, size = ask["texts"], ask["batch"]
        seconds: list[float] = []
        vectors: list[list[float]] = []
        for _ in range(ask["repeat"]):
            began = time.perf_counter()
            vectors = []
            for start in range(0, len(texts), size):
                part = model.encode(
                    texts[start : start + size], batch_size=size, normalize_embeddings=True, show_progress_bar=False
                )
                vectors += part.tolist()
            seconds.append(time.perf_counter() - began)
        print(json.dumps({"seconds": seconds, "vectors": vectors}), flush=True)


if __name__ == "__main__":
    main()
