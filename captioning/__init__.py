"""Captions, and whatever else is asked of models that see or write."""

from __future__ import annotations

# Stage name in pipelines.yaml -> where the class lives.
CAPTIONERS: dict[str, str] = {
    "ask": "captioning.ask:Ask",
    "caption": "captioning.stages:Caption",
    "caption_checks": "captioning.checks:CaptionChecks",
    "caption_similarity": "captioning.similarity:CaptionSimilarity",
    "clean_captions": "captioning.clean:CleanCaptions",
    "frame_captions": "captioning.stages:FrameCaptions",
    "short_caption": "captioning.stages:ShortCaption",
    "sidecar_captions": "captioning.sidecar:SidecarCaptions",
}
