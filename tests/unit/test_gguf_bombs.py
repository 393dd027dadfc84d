"""10,000 mutated headers and some made to hurt: refused, within a second and 64 MiB each."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# In a process of its own, whose memory is limited: what a header can make it take is seen there.
SCRIPT = """
import random, resource, struct, sys, tempfile, time
from pathlib import Path
sys.path[:0] = ["tests"]
from fakes.gguf import METADATA, STRING, ARRAY, U32, gguf, text
from agent.errors import ModelRejected
from agent.models.gguf_check import check_gguf, check_gguf_bytes

def memory(kind):
    return int(next(line for line in open("/proc/self/status") if line.startswith(kind)).split()[1]) << 10

random.seed(1)
good = gguf()
head = len(good) - 192
extremes = [struct.pack("<Q", value) for value in (0, 1, 2**31, 2**32, 2**40, 2**60, 2**63, 2**64 - 1)]
path = Path(tempfile.mkdtemp()) / "model.gguf"
worst, refused = 0.0, 0

def check(data=None):
    global worst, refused
    began = time.process_time()
    try:
        check_gguf(path) if data is None else check_gguf_bytes(data)
    except ModelRejected:
        refused += 1
    worst = max(worst, time.process_time() - began)

check(good)
assert refused == 0
room = 64 << 20
resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize:") + room + (512 << 20), resource.RLIM_INFINITY))
resource.setrlimit(resource.RLIMIT_DATA, (memory("VmData:") + room, resource.RLIM_INFINITY))
for number in range(10_000):
    data = bytearray(good)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(head)
        match random.randrange(5):
            case 0: data[at] = random.randrange(256)
            case 1: data[at] ^= 1 << random.randrange(8)
            case 2: data[at : at + 8] = random.choice(extremes)
            case 3: del data[at : at + random.randrange(1, 40)]
            case 4: data[at:at] = random.choice(extremes)
    check(bytes(data))
assert refused > 8_000, refused

# Made to hurt: files with holes, so that they are large and cost nothing.
def large(metadata, size, hole=0):
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 10))
        for part in metadata if isinstance(metadata, list) else [metadata]:
            file.write(part)
            file.seek(hole, 1)
        file.truncate(size)
    before = refused
    check()
    assert refused == before + 1, size

array = lambda kind, count: struct.pack("<IIQ", ARRAY, kind, count)
large(text("a") + array(STRING, 1 << 24), 256 << 20)            # 16 million empty texts
large(text("a") + array(STRING, 1 << 20), 256 << 20)            # as many as are allowed, then nothing
large([text("k%d" % n) + struct.pack("<IQ", STRING, 16 << 20) for n in range(9)], 160 << 20, hole=16 << 20)
large(text("a") + array(U32, 1 << 24), 512 << 20)
large(text("a") + array(ARRAY, 1 << 24), 512 << 20)
large(text("k" * 60_000) * 3, 512 << 20)
path.unlink()
print(f"{refused} {worst:.3f} {memory('VmHWM:') >> 20}")
assert worst < 1, worst
"""


def test_ten_thousand_mutated_headers():
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
