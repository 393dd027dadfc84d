from agent.demonstrations import nearest, with_demonstrations
from agent.types import Message


def test_the_nearest_stand_beside_the_question():
    vectors = [(1.0, 0.0), (0.0, 1.0), (0.6, 0.8), (0.8, 0.6)]
    assert nearest((1.0, 0.0), vectors, 2) == [3, 0]
    assert nearest((1.0, 0.0), [(1.0, 0.0)] * 3, 2) == [1, 0]  # of equals the first is nearer
    assert nearest((1.0, 0.0), vectors, 0) == []
    assert len(nearest((1.0, 0.0), vectors, 9)) == 4


def test_demonstrations_are_earlier_turns():
    asked = (Message("system", "s"), Message("user", "earlier"), Message("assistant", "yes"), Message("user", "now"))
    told = with_demonstrations(asked, [("a", "1"), ("b", "2")])
    assert [one.content for one in told] == ["s", "earlier", "yes", "a", "1", "b", "2", "now"]
    assert [one.role for one in told[3:]] == ["user", "assistant", "user", "assistant", "user"]
