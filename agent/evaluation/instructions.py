"""Twenty direct instructions whose answers a program can check.

They are easy on purpose: they tell whether a model follows instructions at all through the
template that serves it, not how much it knows.
"""

from __future__ import annotations

import re

import msgspec

ANSWER_TOKENS = 48


class Instruction(msgspec.Struct, frozen=True):
    """A question, and the pattern that its right answers have (case does not matter unless it says so)."""

    question: str
    pattern: str

    def is_followed_by(self, answer: str) -> bool:
        return re.search(self.pattern, answer.strip()) is not None


INSTRUCTIONS = (
    Instruction("What is the capital of France?", r"(?i)\bparis\b"),
    Instruction("What is 2 + 3? Answer with the number only.", r"^\D*5\D*$"),
    Instruction("Repeat this word and say nothing else: lantern", r"(?i)^\W*lantern\W*$"),
    Instruction("Which colour do you get when you mix blue and yellow paint?", r"(?i)\bgreen\b"),
    Instruction('What is the opposite of "hot"? Answer with one word.', r"(?i)^\W*(cold|cool)\W*$"),
    Instruction('Translate into French: "Good morning."', r"(?i)\bbonjour\b"),
    Instruction("Answer with yes or no: is the sun hotter than the Earth?", r"(?i)^\W*yes\b"),
    Instruction("Answer with yes or no: can a stone swim?", r"(?i)^\W*no\b"),
    Instruction("How many legs does a spider have?", r"(?i)\b(8|eight)\b"),
    Instruction("What is the first month of the year?", r"(?i)\bjanuary\b"),
    Instruction('Write the word "river" in capital letters.', r"\bRIVER\b"),
    Instruction("Which of these is a fruit: hammer, apple, chair? Answer with one word.", r"(?i)^\W*(an )?apple\W*$"),
    Instruction(
        'Is this review positive or negative? "The soup was cold and the waiter was rude." Answer with one word.',
        r"(?i)^\W*negative\W*$",
    ),
    Instruction(
        'Is this review positive or negative? "I loved every minute of this film." Answer with one word.',
        r"(?i)^\W*positive\W*$",
    ),
    Instruction("Which number is larger, 17 or 71? Answer with the number only.", r"^\D*71\D*$"),
    Instruction("Which day comes next: Monday, Tuesday, Wednesday?", r"(?i)\bthursday\b"),
    Instruction(
        'In which year was the bridge finished? "The bridge was finished in 1932." Answer with the year only.',
        r"^\D*1932\D*$",
    ),
    Instruction(
        'Write this as a JSON object with the keys "name" and "age": Anna is 31 years old.',
        r'\{\s*"name"\s*:\s*"Anna"\s*,\s*"age"\s*:\s*"?31"?\s*\}',
    ),
    Instruction('What is the plural of "mouse"?', r"(?i)\bmice\b"),
    Instruction(
        'Who wrote this letter? "Dear Tom, the key is under the pot. Yours, Ruth." Answer with the name only.',
        r"(?i)^\W*ruth\W*$",
    ),
)
