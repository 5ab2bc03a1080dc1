"""Where the checkout lies, and the folder of real images and weights beside it."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
SHARED = ROOT.parent / "shared"  # absent on most machines: tests that read it skip
