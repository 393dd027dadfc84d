"""From examples to a certified task and back: the command line, the API and the daemon's storage together."""

import json
import os
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes.api_server import ADMIN, MODEL, USER, events_of, served
from fakes.command_line import as_json, outrider

from agent import executable
from agent.label_likeness import ENCODER

WORDS = {
    "refund": ["money", "back", "return", "paid", "twice", "charged"],
    "card lost": ["card", "lost", "stolen", "wallet", "block", "gone"],
    "hours": ["open", "sunday", "when", "close", "branch", "time"],
}
FILLING = ["please", "hello", "the", "my", "a", "now", "today", "i", "you", "we", "it", "was"]


def drawn(count, seed, *, noise=0.0):
    """Messages that share words with their label; with ``noise``, some that say nothing of it."""
    chance = random.Random(seed)
    found = []
    for number in range(count):
        label = chance.choice(sorted(WORDS))
        words = chance.sample(FILLING, 4)
        if chance.random() >= noise:
            words += chance.sample(WORDS[label], 3)
        chance.shuffle(words)
        found.append({"input": f"{' '.join(words)} {seed}x{number}", "label": label})
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    with served(folder / "data") as server:
        address = {"pid": os.getpid(), "started": executable.started(os.getpid()), "url": server.url}
        (folder / "data" / "daemon.json").write_text(json.dumps(address))
        for name, token in (("token", USER), ("admin-token", ADMIN)):
            (folder / "data" / name).write_text(token)
        config = folder / "outrider.toml"
        config.write_text(f'data_dir = "{folder / "data"}"\n')
        server.user = SimpleNamespace(config=config)
        server.folder = folder
        yield server


@pytest.fixture
def api(server):
    yield server
    server.engine.encoder_digest = "e" * 64
    server.engine.asked.clear()
    for path in (server.folder / "tasks").glob("*"):
        path.unlink()
        server.call(server.tasks.forget(path.stem))


def written(api, name, rows):
    path = api.folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def mail(api):
    labels = [part for label in WORDS for part in ("--label", label)]
    outrider(api.user, "tasks", "new", "mail", *labels, "--accuracy", "0.9")
    return api


@pytest.fixture(scope="module")
def heads():
    return []


@pytest.fixture
def taught(mail, heads):
    """Taught by the command line once; the other tests put that head in, which spares them a process."""
    path = written(mail, "a.jsonl", drawn(90, 1))
    if heads:
        with mail.client(ADMIN) as client:
            assert client.put("/v1/tasks/mail/head", json=heads[0]).status_code == 200
    else:
        outrider(mail.user, "tasks", "teach", "mail", path, "--features", "embedding")
        heads.append(mail.get("/v1/tasks/mail/head").json())
    return mail


def ask(api, text, **fields):
    with api.client() as client:
        return client.post("/v1/classify", json={"task": "mail", "input": text, **fields})


def test_from_examples_to_a_promise_and_through_a_restart(mail, tmp_path):
    path = written(mail, "all.jsonl", drawn(500, 1, noise=0.2))
    told = as_json(mail.user, "tasks", "teach", "mail", path, "--hold-back", "0.5", "--features", "embedding")
    assert told["accuracy"] > 0.75
    assert 200 < told["held_back"] < 300
    before = ask(mail, "card stolen wallet").json()["outrider"]
    assert (before["calibrated"], before["guarantee"]) == (False, "none")
    found = as_json(mail.user, "calibrate", "mail", path, "--svg", str(tmp_path / "svg"))
    calibration = found["calibration"]
    assert (calibration["target"], calibration["value"], calibration["delta"]) == ("accuracy", 0.9, 0.1)
    assert calibration["report"]["examples"] == told["held_back"]
    assert "at least 90.0% are right, with probability 90%" in calibration["sentence"]
    assert [path.rpartition("/")[2] for path in found["pictures"]] == ["mail-reliability.svg", "mail-risk-coverage.svg"]
    sure = ask(mail, "my card was stolen wallet gone").json()
    assert sure["label"] == "card lost"
    told = sure["outrider"]
    assert (told["decision"], told["calibrated"], told["guarantee"]) == ("answered", True, "accuracy 0.9 (pac 0.9)")
    assert told["threshold"] == pytest.approx(calibration["threshold"])
    assert sure["model"] == mail.engine.embeds
    assert not mail.engine.asked  # the language model is not needed
    unsure = ask(mail, "hello please today", outrider={"on_low_confidence": "abstain"}).json()
    assert (unsure["label"], unsure["outrider"]["decision"]) == (None, "uncertain")
    assert unsure["out_of_scope"] > sure["out_of_scope"]
    mail.call(mail.tasks.load())  # as the next life of the daemon does
    assert ask(mail, "my card was stolen wallet gone").json()["outrider"]["guarantee"] == "accuracy 0.9 (pac 0.9)"
    assert as_json(mail.user, "tasks", "show", "mail")["calibration"]["id"] == calibration["id"]


def test_a_model_that_is_not_there_is_an_error_also_where_a_head_answers(taught):
    assert ask(taught, "money back", model=MODEL).status_code == 200
    assert ask(taught, "money back", model="default").status_code == 200
    unknown = ask(taught, "money back", model="gpt-4o")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    with taught.client() as client:
        trials = [
            client.post("/v1/tasks/mail/trials", json={"input": "x", "model": name}) for name in ("gpt-4o", MODEL)
        ]
    assert [one.json()["error"]["code"] for one in trials] == ["model_not_found", "contradiction"]
    assert "no other model changes its answers" in trials[1].json()["error"]["message"]


def test_every_answer_has_all_labels_in_any_order(taught):
    found = ask(taught, "money back").json()
    assert [one["label"] for one in found["labels"]] == sorted(WORDS)
    assert sum(one["probability"] for one in found["labels"]) == pytest.approx(1)
    assert found["probability"] == max(one["probability"] for one in found["labels"])
    path = taught.folder / "tasks" / "mail.toml"
    body = path.read_text().partition("[labels]")
    turned = "\n".join(reversed(body[2].strip().splitlines()))
    path.write_text(f"{body[0]}[labels]\n{turned}\n")
    assert ask(taught, "money back").json()["labels"] == found["labels"]


@pytest.mark.parametrize("change", ["model", "prompt", "head"])
def test_any_change_ends_the_guarantee(taught, change):
    path = written(taught, "b.jsonl", drawn(150, 2))
    outrider(taught.user, "calibrate", "mail", path)
    text = "my card was stolen wallet gone"
    assert ask(taught, text).json()["outrider"]["calibrated"]
    if change == "model":
        taught.engine.encoder_digest = "f" * 64
    elif change == "prompt":
        file = taught.folder / "tasks" / "mail.toml"
        file.write_text(file.read_text().replace('kind = "labels"', 'kind = "labels"\nprompt = "Sort."'))
    else:
        other = written(taught, "c.jsonl", drawn(60, 3))
        outrider(taught.user, "tasks", "teach", "mail", other, "--features", "embedding")
    told = ask(taught, text).json()["outrider"]
    assert (told["calibrated"], told["guarantee"]) == (False, "none")
    kept = taught.get("/v1/tasks/mail").json()["calibration"]
    assert (kept and kept["changed"]) == {"model": ["model"], "prompt": ["labels, schema or prompt"], "head": None}[
        change
    ]
    assert "GUARANTEE" in outrider(taught.user, "tasks", "list").stdout


def test_a_calibration_of_another_head_is_refused(taught):
    found = as_json(taught.user, "calibrate", "mail", written(taught, "b.jsonl", drawn(150, 2)), "--dry-run")
    outrider(taught.user, "tasks", "teach", "mail", written(taught, "c.jsonl", drawn(60, 3)), "--features", "embedding")
    with taught.client(ADMIN) as client:
        response = client.put("/v1/tasks/mail/calibration", json=found["calibration"])
    assert (response.status_code, response.json()["error"]["code"]) == (409, "wrong_state")
    assert "is not what was calibrated" in response.json()["error"]["message"]
    assert taught.get("/v1/tasks/mail").json()["calibration"] is None


def test_too_few_examples_say_how_many_more_and_change_nothing(taught):
    few = written(taught, "few.jsonl", drawn(5, 4))
    result = outrider(taught.user, "calibrate", "mail", few, "--accuracy", "0.95", code=65)
    assert "40 more are needed at least, 45 in all" in result.stderr
    result = outrider(taught.user, "tasks", "teach", "mail", few, code=65)
    assert "at least 2 of each label" in result.stderr
    same = written(taught, "a.jsonl", drawn(90, 1))
    assert (
        "every one of these examples taught the task"
        in outrider(taught.user, "calibrate", "mail", same, code=65).stderr
    )
    told = taught.get("/v1/tasks/mail").json()
    assert (told["head"]["taught"], told["calibration"]) == (90, None)


def test_a_task_that_cannot_be_done_is_escalated_whole(taught):
    hopeless = [{**row, "label": "hours"} if n % 3 else row for n, row in enumerate(drawn(200, 5))]
    path = written(taught, "hopeless.jsonl", hopeless)
    result = outrider(taught.user, "calibrate", "mail", path, "--accuracy", "0.95", code=65)
    assert "Nothing can be served locally" in result.stdout
    told = ask(taught, "my card was stolen wallet gone").json()["outrider"]
    assert (told["decision"], told["guarantee"]) == ("queued", "accuracy 0.95 (pac 0.9): nothing is served")
    assert "threshold" not in told
    found = ask(taught, "my card was stolen", outrider={"on_low_confidence": "abstain"}).json()
    assert "no answer of this task can be served" in found["refusal"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--escalate", "0.3"), "At most 30.0% of all traffic is escalated, with probability 90%"),
        (("--wrong-share", "0.05"), "At most 5.0% of all traffic gets a wrong local answer, on average"),
        (("--accuracy", "0.9", "--on-average"), "at least 90.0% are right, on average"),
        (
            ("--budget", "1.0/day", "--price", "0.01", "--requests", "500"),
            "At most 20.0% of all traffic, which the budget",
        ),
    ],
)
def test_other_promises(taught, options, sentence):
    path = written(taught, "b.jsonl", drawn(200, 2, noise=0.1))
    found = as_json(taught.user, "calibrate", "mail", path, *options)["calibration"]
    assert sentence in found["sentence"]
    assert 0 <= found["threshold"] <= 1


def test_a_share_of_escalations_needs_no_answers(taught):
    rows = [{"input": row["input"]} for row in drawn(120, 2)]
    result = outrider(taught.user, "calibrate", "mail", written(taught, "b.jsonl", rows), "--escalate", "0.2")
    assert "escalated" in result.stdout
    assert "reliability" not in result.stdout


def test_a_head_may_read_the_last_hidden_state(mail):
    path = written(mail, "a.jsonl", drawn(60, 1))
    refused = outrider(mail.user, "tasks", "teach", "mail", path, "--features", "hidden", code=None)
    assert "gives no hidden state" in refused.stderr
    mail.engine.gives_states = True
    mail.engine.embedded.clear()
    told = as_json(mail.user, "tasks", "teach", "mail", path, "--features", "hidden")
    assert (told["feature"], told["accuracy"] > 0.9) == ("hidden", True)
    found = ask(mail, "my card was stolen wallet gone").json()
    assert (found["label"], found["model"], mail.engine.embedded) == ("card lost", MODEL, [])
    assert sum(one["probability"] for one in found["labels"]) == pytest.approx(1)
    assert found["out_of_scope"] == pytest.approx(1 - found["probability"])
    mail.engine.gives_states = False  # a runtime that gives none any more: the head is not guessed with
    other = ask(mail, "my card was stolen wallet gone").json()["outrider"]
    assert other["guarantee"] == "none"


def test_without_a_head_label_scores_are_corrected_by_their_mean(mail):
    """The scripted engine likes short labels: only the mean over inputs takes that out."""
    texts = [f"{label} {number}" for number in range(60) for label in WORDS]
    rows = [{"input": text, "label": text.rpartition(" ")[0]} for text in texts]
    found = as_json(mail.user, "calibrate", "mail", written(mail, "b.jsonl", rows))["calibration"]
    assert found["key"]["estimator"] == f"label_likeness@1/{'e' * 16}"
    assert found["report"]["right"] == found["report"]["examples"] == 144
    before = len(mail.engine.asked)
    told = ask(mail, "refund").json()
    assert (told["label"], told["outrider"]["calibrated"]) == ("refund", True)
    assert told["outrider"]["estimator"] == found["key"]["estimator"]
    assert len(mail.engine.asked) == before + 1  # no input without content is asked
    mail.engine.embeds = ""  # the encoder is away: another way to answer, of which nothing is promised
    try:
        alone = ask(mail, "refund").json()
        again = as_json(mail.user, "calibrate", "mail", written(mail, "b.jsonl", rows))["calibration"]
    finally:
        mail.engine.embeds = ENCODER
    assert (alone["outrider"]["estimator"], alone["outrider"]["guarantee"]) == ("label_margin@1", "none")
    assert again["key"]["estimator"] == "label_margin@1"
    assert again["report"]["right"] == again["report"]["examples"] == 144


def test_traffic_corrects_a_task_that_was_neither_taught_nor_calibrated(mail):
    for number in range(31):
        assert ask(mail, f"{sorted(WORDS)[number % 3]} {number}").status_code == 200
    told = ask(mail, "hours").json()
    assert told["label"] == "hours"
    assert told["outrider"]["guarantee"] == "none"
    mail.call(mail.tasks.save())
    mail.tasks.book.forget("mail")
    mail.call(mail.tasks.load())
    assert mail.get("/v1/tasks/mail").json()["inputs_seen"] == 32


def test_a_chat_may_name_a_task(taught):
    response = taught.chat("my card was stolen wallet gone", metadata={"task": "mail"})
    assert response.json()["choices"][0]["message"]["content"] == "card lost"
    streamed = taught.chat("my card was stolen wallet gone", metadata={"task": "mail"}, stream=True)
    pieces = [event["choices"][0]["delta"].get("content") or "" for event in events_of(streamed) if event["choices"]]
    assert "".join(pieces) == "card lost"
    for fields, param in (
        ({"metadata": {"task": "male"}}, "task"),
        ({"metadata": {"task": "mail"}, "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"metadata": {"task": "mail"}, "messages": [{"role": "user", "content": " "}]}, "input"),
        ({"metadata": {"task": 3}}, "metadata.task"),
    ):
        error = taught.chat("x", **fields).json()["error"]
        assert error["param"] == param, error


def test_a_classification_with_a_task_brings_nothing_of_its_own(mail):
    for fields, param in (({"labels": ["a", "b"]}, "labels"), ({"metadata": {"task": "x"}}, "task")):
        error = ask(mail, "x", **fields).json()["error"]
        assert (error["param"], "task" in error["message"]) == (param, True)
    assert ask(mail, "  ").json()["error"]["param"] == "input"


def test_tasks_over_http(api):
    body = {"name": "say", "kind": "text", "prompt": "Say it."}
    with api.client(ADMIN) as client:
        assert client.post("/v1/tasks", json=body).status_code == 201
        assert (
            client.post("/v1/tasks", json={**body, "name": "x", "labls": []}).json()["error"]["code"] == "invalid_value"
        )
        assert client.post("/v1/tasks", json=body).status_code == 422
    with api.client() as client:
        assert client.post("/v1/tasks", json=body).status_code == 403
        assert client.delete("/v1/tasks/say").status_code == 403
    api.chat("hi", metadata={"task": "say"})
    assert [message.content for message in api.engine.asked[-1].messages] == ["Say it.", "hi"]
    assert [one["name"] for one in api.get("/v1/tasks").json()["data"]] == ["say"]
    rows = [{"input": f"a {n}", "answer": f"echo: a {n}"} for n in range(60)]
    found = as_json(api.user, "calibrate", "say", written(api, "t.jsonl", rows), "--accuracy", "0.9")
    assert found["calibration"]["report"]["right"] == 60
    assert api.chat("a b", metadata={"task": "say"}).json()["outrider"]["calibrated"]
    drawn_at_random = api.chat("a b", metadata={"task": "say"}, temperature=1).json()["outrider"]
    assert (drawn_at_random["calibrated"], drawn_at_random["guarantee"]) == (False, "none")
    outrider(api.user, "tasks", "rm", "say", "--yes")
    assert api.get("/v1/tasks/say").json()["error"]["code"] == "task_not_found"
    assert api.get("/v1/tasks").json()["data"] == []


def test_a_broken_file_is_named_and_the_others_work(taught):
    (taught.folder / "tasks" / "broken.toml").write_text("lables = 3")
    rows = {row["name"]: row for row in as_json(taught.user, "tasks", "list")}
    assert "did you mean labels" in rows["broken"]["error"]
    assert rows["mail"]["head"]["current"]
    findings = as_json(taught.user, "doctor", code=None)
    told = [one for one in findings if one["subject"] == "tasks"]
    assert ["did you mean labels" in one["detail"] for one in told] == [True, False], told
    assert "unknown key lables" in taught.chat("x", metadata={"task": "broken"}).json()["error"]["message"]


def test_tasks_new_asks_nobody_without_a_terminal(api):
    result = outrider(api.user, "tasks", "new", "x", code=78)
    assert "2 to 500 labels" in result.stderr
    assert "outrider tasks new NAME" in outrider(api.user, "tasks", "new", code=78).stderr


def test_tasks_new_walks_a_beginner_through_it(api, monkeypatch):
    monkeypatch.setattr("agent.cli.tasks.sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    answers = ["triage", "labels", "urgent=somebody is hurt", "later", "", "0.9", "never"]
    result = outrider(api.user, "tasks", "new", stdin="\n".join(answers) + "\n")
    assert "outrider tasks teach triage" in result.stderr
    told = api.get("/v1/tasks/triage").json()
    assert (told["labels"], told["egress"]) == ({"urgent": "somebody is hurt", "later": ""}, "never")
    assert told["target"]["accuracy"] == 0.9
    folder = api.user.config.parent / "tasks"
    assert "quality_sample" not in (folder / "triage.toml").read_text()
    answers = ["sorted", "labels", "urgent", "later", "", "0.9", "allow", "0.02"]
    outrider(api.user, "tasks", "new", stdin="\n".join(answers) + "\n")
    assert "quality_sample = 0.02" in (folder / "sorted.toml").read_text()


def test_what_a_head_must_be(taught):
    head = taught.get("/v1/tasks/mail/head").json()
    with taught.client(ADMIN) as client:
        for change, what in (
            ({"temperature": 0}, "not a positive number"),
            ({"labels": ["a", "b"]}, "has changed"),
            ({"embedding": {"weights": "AAAAAA==", "bias": [0, 0, 0]}}, "is not of 3 labels"),
            ({"feature": "both"}, "has not the layers"),
            ({"feature": "smell"}, "the body does not hold"),
        ):
            error = client.put("/v1/tasks/mail/head", json={**head, **change}).json()["error"]
            assert what in error["message"], error
    assert MODEL


def test_a_preset_brings_labels_and_examples_that_teach_it(api):
    for name in ("moderation", "intent", "triage"):
        made = as_json(api.user, "tasks", "new", "--preset", name)
        lines = [json.loads(line) for line in Path(made["examples"]).read_text().splitlines()]
        assert {line["label"] for line in lines} == set(made["task"]["labels"])
        assert len({line["input"] for line in lines}) == len(lines) >= 80
    as_json(api.user, "tasks", "teach", "triage", made["examples"], "--features", "embedding")
    assert api.get("/v1/tasks/triage").json()["head"]["taught"] == len(lines)
    own = as_json(api.user, "tasks", "new", "gate", "--preset", "moderation", "--accuracy", "0.9")
    assert own["task"]["target"]["accuracy"] == 0.9
    for arguments, why in (
        (("gate", "--preset", "moderation"), "exists already"),
        (("x", "--preset", "intent", "--label", "a"), "has its own labels"),
    ):
        refused = outrider(api.user, "tasks", "new", *arguments, code=78)
        assert why in refused.stderr
