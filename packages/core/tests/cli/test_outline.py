"""`fewstep show` reads sources: the same fields as the class itself has, and no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from fewstep import plugins
from fewstep.cli.outline import Unread, outline
from fewstep.cli.show import fields

SHOW = """
import sys
from fewstep.cli import main
code = main(["show", sys.argv[1]])
print("torch" in sys.modules)
sys.exit(code)
"""


@pytest.mark.parametrize("card", [*plugins.methods().values(), *plugins.tasks().values()], ids=lambda card: card.name)
def test_the_outline_is_that_of_the_class(card):
    try:
        read = outline(card.target)
    except Unread:  # then the class is imported
        return
    cls = card.load()
    assert [(name, *rest) for name, rest in read.fields.items()] == fields(cls)
    if read.words("seams"):  # else the command imports the class
        assert read.words("seams") == sorted(cls.seams)


def test_show_needs_no_torch(tmp_path):
    shown = subprocess.run([sys.executable, "-c", SHOW, "slim-infer"], cwd=tmp_path, capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.splitlines()[-1] == "False" and "occupies: attention, hidden-tokens" in shown.stdout
