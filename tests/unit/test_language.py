"""Which language a text is in, and that nobody guesses."""

# ruff: noqa: RUF001 - letters of other alphabets are meant

import pytest

from agent.language import KNOWN, language_of

TEXTS = {
    "en": "Where is my parcel? I have been waiting for two weeks and nobody answers.",
    "de": "Wo ist mein Paket? Ich warte seit zwei Wochen und niemand antwortet mir.",
    "fr": "Où est mon colis ? J'attends depuis deux semaines et personne ne me répond.",
    "es": "¿Dónde está mi paquete? Espero desde hace dos semanas y nadie me contesta.",
    "it": "Dove è il mio pacco? Aspetto da due settimane e nessuno mi risponde, non so che fare.",
    "nl": "Waar is mijn pakket? Ik wacht al twee weken en niemand geeft mij een antwoord.",
    "pl": "Gdzie jest moja paczka? Czekam od dwóch tygodni i nikt się do mnie nie odzywa.",
    "pt": "Onde está a minha encomenda? Estou à espera há duas semanas e ninguém me responde.",
    "sv": "Var är mitt paket? Jag har väntat i två veckor och det är ingen som svarar.",
    "da": "Hvor er min pakke? Jeg har ventet i to uger, og der er ikke nogen, der svarer.",
    "cs": "Kde je můj balík? Čekám už dva týdny a nikdo mi neodpovídá, co se děje?",
    "fi": "Missä pakettini on? Olen odottanut kaksi viikkoa, mutta kukaan ei vastaa, mitä nyt teen?",
    "hu": "Hol van a csomagom? Már két hete várok, és senki nem válaszol, mi történt vele?",
    "tr": "Paketim nerede? İki haftadır bekliyorum ve kimse cevap vermiyor, ne yapmam gerekiyor?",
    "ru": "Где моя посылка? Я жду уже две недели, и никто не отвечает.",
    "uk": "Де моя посилка? Я чекаю вже два тижні, і ніхто не відповідає.",
    "ja": "荷物はどこですか？二週間待っていますが、返事がありません。",
    "zh": "我的包裹在哪里？我已经等了两个星期，没有人回复。",
    "ko": "제 소포는 어디에 있나요? 2주 동안 기다렸어요.",
    "ar": "أين طردي؟ أنا أنتظر منذ أسبوعين ولا أحد يجيب.",
}


@pytest.mark.parametrize(("language", "text"), TEXTS.items())
def test_a_sentence_or_two_are_enough(language, text):
    assert language_of(text) == language
    assert language in KNOWN


@pytest.mark.parametrize(
    "text", ["", "12345 !?", "OK", "Paris", "kubectl get pods --all-namespaces", "xq zzv wrtp" * 20]
)
def test_what_says_too_little_is_not_known(text):
    assert language_of(text) is None
