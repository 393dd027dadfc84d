"""In which language a text is, by its script and its commonest words. Pure.

A handful of words makes up a third of any text of a language, and few of them are common in
another. Fourteen languages in Latin letters are told apart so; others by their script alone. What
is too short or has too few of those words is not known, and said so.
"""

# ruff: noqa: RUF001 - letters of other alphabets are meant

from __future__ import annotations

import re
import unicodedata

FEWEST_HITS = 2  # common words, less than which say nothing
LEAST_SHARE = 0.08  # of all words
LEAST_FOREIGN = 0.3  # of all letters: names and terms in Latin letters stand in texts of any script
LEAST_LEAD = 1.15  # of the best over the second
MOST_WORDS = 400  # of the beginning; more say nothing new

_WORDS = {
    "cs": "a se na je že v s z do to si ve pro ale jako jsem jsou by co tak když nebo po od který která jeho už není ještě byl může má mám chci prosím kde",
    "da": "og i det at er en til på som de med der af ikke den har jeg for vi et du man kan var men om fra skal vil hvor hvad hun mig også efter blev min mit",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er hat dass sie nach wird bei einer um am sind noch wie einem über ich mein meine wir aber oder kann wo was bitte wenn haben mir",
    "en": "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one you were all her she there would their we him been has when who will more no if out so what my can how do i me your about",
    "es": "de la que el en y a los se del las un por con no una su para es al lo como más pero sus le ha me si sin sobre este ya cuando todo esta son también muy mi qué hay puedo cómo quiero tengo está dónde",
    "fi": "ja on ei se että oli hän mutta ovat kun niin tai myös kuin ole mitä jos sen sitä nyt vain minä voi olen mikä ne jotka mukaan joka kanssa hänen ollut minun missä kuinka miten tämä",
    "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont avec mais on ou je vous cette nous mon ma mes comment où elle ses leur était être fait comme tout aux j'ai c'est",
    "hu": "a az és hogy nem is egy ez meg csak volt már de van ha el mint még azt vagy mert ki ami lehet minden amely kell majd én hol mit mi nagyon lesz vagyok azért ezt",
    "it": "di e che la il un a per è in una non sono mi ho ma lo ha le si ti i con cosa se io come da ci no questo qui del bene tu al delle della nel gli anche dove quando più perché mia mio posso voglio",
    "nl": "de van het een en in is dat op te zijn met voor niet aan er die om ook als dan maar bij of uit nog naar heeft hij ze wordt ik mijn wat waar hoe kan je deze door over tot hebben was worden",
    "pl": "w i z na się do nie to że jest o a jak po co tak za od jego ale czy dla są tylko przez przy był już może być ja mam jestem gdzie moje mój który która bardzo proszę chcę",
    "pt": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem seu sua ou ser quando muito há nos já está eu também só pelo pela até isso onde minha meu posso você",
    "sv": "och i att det som en på är av för med den till inte om ett han men var jag sig från vi så kan när har hon de nu där mig vad min hur mitt ska vill skulle också eller efter vid",
    "tr": "ve bir bu da de için ne mi çok ben o ama var daha gibi kadar sen değil olarak ile nasıl en her şey mı olan sonra yok nerede benim ki istiyorum lütfen oldu ya hangi",
}
LANGUAGES = {language: frozenset(words.split()) for language, words in _WORDS.items()}
_SCRIPTS = {
    "CYRILLIC": "ru",
    "GREEK": "el",
    "HEBREW": "he",
    "ARABIC": "ar",
    "HANGUL": "ko",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "CJK": "zh",
    "THAI": "th",
    "DEVANAGARI": "hi",
    "BENGALI": "bn",
    "TAMIL": "ta",
    "GEORGIAN": "ka",
    "ARMENIAN": "hy",
}
# Letters that are written in no other of these languages: a word with one counts as a common one.
_LETTERS = {
    "cs": frozenset("řěů"),
    "da": frozenset("øæ"),
    "de": frozenset("ß"),
    "es": frozenset("ñ"),
    "hu": frozenset("őű"),
    "pl": frozenset("łąęśźżń"),
    "pt": frozenset("ãõ"),
    "tr": frozenset("ığş"),
}
_UKRAINIAN = frozenset("іїєґ")
_PERSIAN = frozenset("پچژگ")
KNOWN = frozenset({*LANGUAGES, *_SCRIPTS.values(), "uk", "fa"})
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


def language_of(text: str) -> str | None:
    """Return the ISO 639-1 code of the language, or None where it is not known."""
    words = [word.casefold() for word, _ in zip(_found(text), range(MOST_WORDS), strict=False)]
    if not words:
        return None
    if (foreign := _by_script("".join(words))) is not None:
        return foreign or None
    hits = {language: sum(word in common for word in words) for language, common in LANGUAGES.items()}
    for language, letters in _LETTERS.items():
        hits[language] += sum(word not in LANGUAGES[language] and not letters.isdisjoint(word) for word in words)
    first, second = sorted(hits, key=lambda language: -hits[language])[:2]
    if hits[first] < FEWEST_HITS or hits[first] < LEAST_SHARE * len(words) or hits[first] < LEAST_LEAD * hits[second]:
        return None
    return first


def _found(text: str) -> list[str]:
    return [match[0] for match in _WORD.finditer(text[: MOST_WORDS * 40])]


def _by_script(letters: str) -> str | None:
    """Return the language that most letters' script stands for; "" for a script of many, None for Latin."""
    counts: dict[str, int] = {}
    for letter in letters[:2000]:
        script = "LATIN" if letter.isascii() else unicodedata.name(letter, "").split(" ")[0].split("-")[0]
        counts[script] = counts.get(script, 0) + 1
    foreign = {one: count for one, count in counts.items() if one != "LATIN"}
    script = max(foreign, key=lambda one: foreign[one], default="LATIN")
    if foreign.get(script, 0) < LEAST_FOREIGN * len(letters[:2000]):
        return None
    if counts.get("HIRAGANA", 0) + counts.get("KATAKANA", 0) > len(letters[:2000]) // 10:
        return "ja"  # mixed with Chinese characters
    if script == "CYRILLIC" and _UKRAINIAN & {*letters}:
        return "uk"
    if script == "ARABIC" and _PERSIAN & {*letters}:
        return "fa"
    return _SCRIPTS.get(script, "")
