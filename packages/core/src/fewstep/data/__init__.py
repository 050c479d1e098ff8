"""Files and data: one reader for each kind of file, and the real texts and clips that packages ship."""
