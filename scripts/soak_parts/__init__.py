"""Parts of ``scripts/soak.py``: kills, damaged files, and methods applied and removed in random order."""
