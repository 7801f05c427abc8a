"""Scores: one file per score, one class per stage. A score is measured here; what to keep is decided by rules."""

from __future__ import annotations

# Stage name in pipelines.yaml -> where the class lives. Loaded on use, so that heavy imports stay out of start-up.
FILTERS: dict[str, str] = {
    "aesthetic": "filters.aesthetic:Aesthetic",
    "blockiness": "filters.blockiness:Blockiness",
    "classify": "filters.classify:Classify",
    "colour": "filters.colour:Colour",
    "duplicates": "filters.duplicates:Duplicates",
    "embedding": "filters.embedding:Embedding",
    "flicker": "filters.flicker:Flicker",
    "learned": "filters.learned:Learned",
    "match": "filters.match:Match",
    "motion": "filters.motion:Motion",
    "noise": "filters.noise:Noise",
    "quality": "filters.quality:Quality",
    "semantic_duplicates": "filters.semantic_duplicates:SemanticDuplicates",
    "text": "filters.text:Text",
    "video_hash": "filters.video_hash:VideoHash",
}
