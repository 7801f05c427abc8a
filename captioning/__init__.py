"""Captions: stages that write the caption columns of a clip."""

from __future__ import annotations

# Stage name in pipelines.yaml -> where the class lives.
CAPTIONERS: dict[str, str] = {
    "caption": "captioning.stages:Caption",
    "caption_checks": "captioning.checks:CaptionChecks",
    "caption_similarity": "captioning.similarity:CaptionSimilarity",
    "clean_captions": "captioning.clean:CleanCaptions",
    "frame_captions": "captioning.stages:FrameCaptions",
    "short_caption": "captioning.stages:ShortCaption",
    "sidecar_captions": "captioning.sidecar:SidecarCaptions",
}
