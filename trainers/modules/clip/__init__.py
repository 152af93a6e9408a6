"""Backbones: frozen CLIPs of the packages clip, open_clip and transformers."""
