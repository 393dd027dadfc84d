"""Tasks as files: what is said, what is refused by name, and what a calibration depends on."""

import msgspec
import pytest

from agent.errors import ConfigError, TaskNotFound
from agent.task_folder import TaskFolder
from agent.tasks import Match, TaskKind, TaskSpec, budget_per_day, parse_task, task_text

MAIL = """
name = "mail"
kind = "labels"
egress = "never"
on_low_confidence = "abstain"

[target]
accuracy = 0.95

[labels]
refund = "wants money back"
"card lost" = ""
"""


def test_a_task_is_read_and_written_back():
    spec = parse_task(MAIL, "mail.toml", "mail")
    assert spec.names == ("card lost", "refund")
    assert spec.target.named == ("accuracy", 0.95)
    assert spec.instruction.endswith("card lost\nrefund: wants money back")
    assert [message.role for message in spec.messages("x")] == ["system", "user"]
    assert parse_task(task_text(spec), "again", "mail") == spec


WRITTEN = """
name = "guests"
kind = "tool"
max_tokens = 50
samples = 3

[[tools]]
type = "function"

[tools.function]
name = "book"
"""


def test_a_task_of_written_answers_is_read_and_written_back():
    spec = parse_task(WRITTEN, "guests.toml", "guests")
    assert parse_task(task_text(spec), "again", "guests") == spec
    assert (spec.matching, spec.tools[0]["function"]["name"]) == (Match.EXACT, "book")
    matching = {kind: TaskSpec(name="x", kind=kind).matching for kind in (TaskKind.TEXT, TaskKind.EXTRACT)}
    assert matching == {TaskKind.TEXT: Match.NORMALISED, TaskKind.EXTRACT: Match.FIELDS}


def test_what_an_answer_is_made_and_judged_by_is_in_the_digest():
    plain = TaskSpec(name="x", kind=TaskKind.TEXT)
    changes = ({"max_tokens": 5}, {"match": Match.NUMERIC}, {"samples": 2}, {"prompt": "p"})
    assert len({plain.digest, *(msgspec.structs.replace(plain, **change).digest for change in changes)}) == 5
    assert msgspec.structs.replace(plain, egress="never").digest == plain.digest


def test_labels_may_be_a_plain_list_and_the_name_the_files():
    spec = parse_task('labels = ["a", "b"]', "sort.toml", "sort")
    assert (spec.name, spec.labels) == ("sort", {"a": "", "b": ""})


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("lables = ['a', 'b']", "unknown key lables; did you mean labels"),
        (MAIL + "\n[target2]\nx = 1", "unknown key target2"),
        (MAIL.replace("accuracy =", "acuracy ="), "unknown key target.acuracy; did you mean target.accuracy"),
        (MAIL.replace("accuracy = 0.95", "accuracy = 95"), "target.accuracy"),
        (MAIL.replace("accuracy = 0.95", "accuracy = 0.9\nescalate = 0.1"), "accuracy and escalate are both set"),
        (MAIL.replace("accuracy = 0.95", 'budget = "much"'), "write it as 1.0/day"),
        ("name = 'other'\nlabels = ['a', 'b']", "is not the file's"),
        ("labels = ['a']", "2 to 500 labels"),
        ("labels = ['a', 'b']\nmatch = 'exact'", "not to kind labels"),
        ("kind = 'text'\nmatch = 'fields'", "fields are compared of kind extract"),
        ("kind = 'tool'\nmatch = 'numeric'", "numbers are compared of kind text"),
        ("kind = 'text'\nfield_f1 = 0.5", "field_f1 belongs to match fields"),
        ("kind = 'text'\nsamples = 9", "samples"),
        ("kind = 'text'\nmax_tokens = 0", "max_tokens"),
        ("kind = 'text'\ntools = [{}]", "tools belong to kind tool"),
        ("labels = ['a', 'a']", "'a' comes twice"),
        ("labels = ['a', 'A']", "more than upper and lower case"),
        ("labels = ['a', ' b']", "no space at either end"),
        ("labels = ['a', 2]\nkind = 3", "kind"),
        ("kind = 'text'\nlabels = ['a', 'b']", "labels belong to kind labels"),
        ("kind = 'extract'", "needs the JSON schema"),
        ("labels = ['a', 'b']\negress = 'maybe'", "egress"),
        ("labels = [", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_named(text, what):
    with pytest.raises(ConfigError, match=r"mail\.toml") as raised:
        parse_task(text, "mail.toml", "mail")
    assert what in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_digest_is_of_what_answers_are_made_with():
    spec = parse_task(MAIL, "mail.toml")
    turned = parse_task('[labels]\n"card lost" = ""\nrefund = "wants money back"', "mail.toml", "mail")
    assert turned.digest == spec.digest  # other order, no target, no policies
    for change in (
        {"prompt": "Sort."},
        {"labels": {**spec.labels, "x": ""}},
        {"labels": {"refund": "", "card lost": ""}},
    ):
        assert msgspec.structs.replace(spec, **change).digest != spec.digest


def test_a_folder_reads_a_file_again_when_it_has_changed(tmp_path):
    folder = TaskFolder(tmp_path / "tasks")
    assert folder.names() == []
    with pytest.raises(TaskNotFound, match="outrider tasks new"):
        folder.get("mail")
    spec = parse_task(MAIL, "mail.toml")
    path = folder.put(spec)
    assert path.stat().st_mode & 0o777 == 0o600
    assert folder.get("mail") is folder.get("mail")
    with pytest.raises(ConfigError, match="exists already"):
        folder.put(spec)
    folder.put(msgspec.structs.replace(spec, prompt="Sort."), replace=True)
    assert folder.get("mail").prompt == "Sort."
    with pytest.raises(TaskNotFound, match="did you mean mail"):
        folder.get("mial")
    for outside in ("../mail", "", "MAIL", "mail/x"):
        with pytest.raises(TaskNotFound):
            folder.get(outside)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        folder.get("mail")
    folder.remove("mail")
    with pytest.raises(TaskNotFound):
        folder.remove("mail")
    assert list(folder.path.iterdir()) == []


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "tasks").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be written"):
        TaskFolder(tmp_path / "tasks").put(TaskSpec(name="x", labels={"a": "", "b": ""}))


def test_budgets():
    assert budget_per_day("1.5/day", "x") == 1.5
    for text in ("1.5", "0/day", "-1/day", "1/week", "nan/day"):
        with pytest.raises(ConfigError, match="no budget"):
            budget_per_day(text, "x")
