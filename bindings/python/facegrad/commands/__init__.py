"""The commands of ``python -m facegrad``, one per file."""
