"""The closed language of questions about canvases and of their answers."""

from __future__ import annotations

NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
)
LANGUAGES = {
    "english": NUMBERS[:10],
    "german": ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"),
    "french": ("zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"),
    "spanish": ("cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve"),
    "dutch": ("nul", "een", "twee", "drie", "vier", "vijf", "zes", "zeven", "acht", "negen"),
    "polish": ("zero", "jeden", "dwa", "trzy", "cztery", "pięć", "sześć", "siedem", "osiem", "dziewięć"),
}
"""Names of the digits: the tables that `name` questions look up."""
ROWS, COLUMNS = "abcd", "1234"
CELLS = tuple(row + column for row in ROWS for column in COLUMNS)
"""``a1`` is top left, ``d4`` bottom right."""
FORMS = {
    "name": "name {cell} in {language} ?",
    "find": "where is {digit} ?",
    "count": "how many digits ?",
    "larger": "larger of {cell} and {other} ?",
    "sum": "sum of {cell} and {other} ?",
    "read": "read row {row} ?",
}
"""Kinds of questions."""
ASKED = tuple(kind for kind in FORMS if kind != "find")
"""Those that `digit-qa` asks: where a digit is stays hard for a model of this size."""
SPECIAL = ("<|endoftext|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
UNKNOWN = "<unk>"


def vocabulary() -> dict[str, int]:
    """Return the ids of all words, special tokens first."""
    said = (word for form in FORMS.values() for word in form.split() if not word.startswith("{"))
    spoken = (word for table in LANGUAGES.values() for word in table)
    words = dict.fromkeys((*SPECIAL, UNKNOWN, *said, *CELLS, *ROWS, *LANGUAGES, *NUMBERS, *spoken))
    return {word: number for number, word in enumerate(words)}
