"""Guesses without sense: of any length, right now and then."""

from fakes.fake_runtime import END, VOCABULARY, next_token

from agent.engine.drafting import Drafting


class FakeDrafting(Drafting):
    def __init__(self, random, rightness):
        super().__init__()
        self.random = random
        self.rightness = rightness

    def drafts(self, requests, room):
        drafts = []
        for request in requests:
            most = max(0, min(room, request.limit - request.generated - 1))
            draft = []
            for _ in range(self.random.randint(0, most)):
                right = next_token(request.prompt + request.answer + draft)
                right_now = self.random.random() < self.rightness
                if right_now and right == END:
                    break
                draft.append(right if right_now else self.random.randrange(VOCABULARY))
            room -= len(draft)
            drafts.append(draft)
        return drafts
