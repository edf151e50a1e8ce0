"""The commands of ``python -m facegrad``, one a file."""
