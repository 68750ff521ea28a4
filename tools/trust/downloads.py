"""Downloads from a server that misbehaves, and with the client killed midway:
`python tools/trust/downloads.py`

A real HTTP server on this machine serves a few phantoms with the lists that the hub and GitHub give. Before
it sends the right thing it misbehaves in one way. After each attack every file that has its final name must
have the right bytes, and nothing may lie outside of the folder."""
import hashlib, json, random, re, subprocess, sys, tempfile, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import table

CASES = ['case_00000', 'case_00001']
HERE = '/repos/', '/api/'


def make_files(folder):
    "{path: bytes}: scans, labels and the table of two cases"
    from kits_nb.data.phantom import write_phantoms
    write_phantoms(folder, 2, shape=(16, 40, 44), spacing=(12., 8., 8.))
    out = {o.relative_to(folder).as_posix(): o.read_bytes() for o in Path(folder).rglob('case_*/*.nii.gz')}
    return out | {'kits.json': json.dumps([dict(case_id=o) for o in CASES]).encode()}


class Server(ThreadingHTTPServer):
    "Serves the files; `plan` maps words of an address to what happens there first, one after the other"
    daemon_threads = True

    def __init__(self, files):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files, self.plan, self.asked, self.pace, self.lists = files, {}, [], 0, {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *args): pass              # clients that are killed

    @property
    def url(self): return f'http://127.0.0.1:{self.server_port}'

    def listing(self, path):
        "JSON of a list, unless an attack has put another in its place"
        for k, v in self.lists.items():
            if k in path: return v
        if path.endswith('/revision/main') or '/commits/' in path: return b'{"sha": "c0ffee"}'
        if '/api/datasets/' in path: return json.dumps(self.images()).encode()
        def git(v): return hashlib.sha1(f'blob {len(v)}\0'.encode() + v).hexdigest()
        there = {k: v for k, v in self.files.items() if 'imaging' not in k}
        tree = [dict(path=f'data/{k}', size=len(v), sha=git(v)) for k, v in there.items()]
        return json.dumps(dict(tree=tree)).encode()

    def images(self):
        return [dict(path=f'images/{k[:10]}.nii.gz', lfs=dict(oid=hashlib.sha256(v).hexdigest(), size=len(v)))
                for k, v in self.files.items() if 'imaging' in k]

    def file_of(self, path):
        if path.endswith('kits.json'): return 'kits.json'
        case = re.search(r'case_\d{5}', path)[0]
        return f'{case}/{"imaging" if "/resolve/" in path else "segmentation"}.nii.gz'


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args): pass

    def do_GET(self):
        s = self.server
        what = next((v.pop(0) for k, v in s.plan.items() if k in self.path and v), None)
        if self.path.startswith(HERE): data, start = s.listing(self.path), 0
        else:
            data = s.files[s.file_of(self.path)]
            start = int((self.headers.get('Range') or 'bytes=0-')[6:-1])
            s.asked.append((s.file_of(self.path), start))
        if what: return what(self, data, start)
        self.right(data, start)

    def right(self, data, start=0):
        self.send(data[start:], 206 if start else 200, _range(data, start))

    def send(self, body, code=200, headers=(), length=None, close=False):
        self.send_response(code)
        given = {'Content-Type': 'application/octet-stream'}
        given |= {'Content-Length': len(body) if length is None else length}
        for k, v in (given | dict(headers)).items():
            if v != '': self.send_header(k, str(v))
        if close: self.send_header('Connection', 'close')
        self.end_headers()
        pace = self.server.pace
        for k in range(0, len(body), 4096):
            self.wfile.write(body[k:k+4096])
            if pace: time.sleep(pace)
        if close: self.close_connection = True


# What a server may do

def drop(n):
    return lambda h, d, s: h.send(d[s:s+n], 206 if s else 200, _range(d, s), len(d)-s, close=True)

def status(code, **headers): return lambda h, d, s: h.send(b'sorry', code, headers)
def _range(d, s): return {'Content-Range': f'bytes {s}-{len(d)-1}/{len(d)}'} if s else {}
def page(h, d, s): h.send(b'<html>log in</html>', headers={'Content-Type': 'text/html'})
def page_as_file(h, d, s): h.send((b'<html>log in</html>'*len(d))[:len(d)])
def too_long(h, d, s): h.send(d + b'more', length=len(d)+4)
def endless(h, d, s): h.send(d + bytes(2**20), headers={'Content-Length': ''}, close=True)
def too_short(h, d, s): h.send(d[:len(d)//2], length=len(d)//2)
def nothing(h, d, s): h.send(b'')
def flipped(h, d, s): h.send(bytes([d[0] ^ 1]) + d[1:])
def other_part(h, d, s): h.send(d[:-s or None], 206, {'Content-Range': f'bytes 0-{len(d)-s-1}/{len(d)}'})
def whole_again(h, d, s): h.send(d)
def compressed(h, d, s): h.send(d, headers={'Content-Encoding': 'gzip'})
def to_file(h, d, s): h.send(b'', 302, {'Location': 'file:///etc/passwd'})
def in_circles(h, d, s): h.send(b'', 302, {'Location': h.path})
def silent(h, d, s): h.close_connection = True
def rubbish(h, d, s): h.wfile.write(b'\0\1\2 rubbish\r\n\r\n'); h.close_connection = True
def not_json(h, d, s): h.send(b'{"tree": ')


PAST = 'Wed, 21 Oct 2015 07:28:00 GMT'
IMAGE, LABEL, LIST = '/resolve/c0ffee/images/case_00000', 'case_00000/segmentation', '/tree/'
ATTACKS = {     # name -> (what happens at which address, is everything there in the end?)
    'drops the connection at once': ({IMAGE: [drop(0)]*3}, True),
    'drops the connection again and again': ({IMAGE: [drop(9000)]*20}, True),
    'drops both kinds of files': ({IMAGE: [drop(5000)], LABEL: [drop(100)]}, True),
    'announces more than the list': ({IMAGE: [too_long]*2}, True),
    'announces less than the list': ({IMAGE: [too_short]*2}, True),
    'sends without end': ({IMAGE: [endless]}, True),
    'sends nothing': ({IMAGE: [nothing]*2}, True),
    'closes without an answer': ({IMAGE: [silent]*2}, True),
    'answers rubbish': ({IMAGE: [rubbish]*2}, True),
    'is busy, and says for how long': ({IMAGE: [status(429, **{'Retry-After': 7})]}, True),
    'is busy, and names a date': ({IMAGE: [status(503, **{'Retry-After': PAST})]}, True),
    'breaks down three times': ({IMAGE: [status(500)]*3}, True),
    'breaks down for good': ({IMAGE: [status(500)]*99}, False),
    'has the file no more': ({IMAGE: [status(404)]*99}, False),
    'forbids the file': ({LABEL: [status(403)]*99}, False),
    'sends a web page': ({IMAGE: [page]*3}, True),
    'sends a web page for good': ({IMAGE: [page]*99}, False),
    'sends a web page as a file': ({IMAGE: [page_as_file]}, True),
    'sends a flipped bit': ({IMAGE: [flipped]}, True),
    'sends a flipped bit for good': ({IMAGE: [flipped]*99}, False),
    'sends wrong labels for good': ({LABEL: [flipped]*99}, False),
    'sends another part': ({IMAGE: [drop(9000), other_part]}, True),
    'knows no parts': ({IMAGE: [drop(9000), whole_again]}, True),
    'sends compressed': ({IMAGE: [compressed]}, True),
    'leads to a local file': ({IMAGE: [to_file]}, False),
    'leads in circles': ({IMAGE: [in_circles]*99}, False),
    'lists: a web page': ({LIST: [page]}, True),
    'lists: broken JSON': ({LIST: [not_json]*2}, True),
    'lists: broken JSON for good': ({LIST: [not_json]*99}, False),
    'lists: busy': ({LIST: [status(429)]*2}, True)}


def check_folder(out, files, whole):
    "'' or what is wrong: a final name with other bytes, a file too many, or one that is missing"
    found = {o.relative_to(out).as_posix(): o for o in out.rglob('*') if o.is_file()} if out.exists() else {}
    for k, o in found.items():
        if o.name.startswith('.part-') or k == 'downloads.json': continue
        if k not in files: return f'a file nobody asked for: {k}'
        if o.read_bytes() != files[k]: return f'a corrupt file under a final name: {k}'
    if whole and (missing := set(files) - set(found)): return f'missing: {missing}'
    return 'a part is left' if whole and any(o.name.startswith('.part-') for o in found.values()) else ''


def fetch_all(server, out):
    from kits_nb.data.download import Servers, download
    def silent(words): pass
    return download(out, servers=Servers.at(server.url), wait=silent, echo=silent, n_workers=2)


def attack(server, out, plan, whole):
    "'' or what is wrong"
    from kits_nb.core import CaseError
    server.plan = {k: list(v) for k, v in plan.items()}
    try:
        o = fetch_all(server, out)
        said = '' if not o.failed else str(o.failed[0])
    except CaseError as e: said = str(e)
    except Exception as e: return f'a traceback: {type(e).__name__}: {e}'
    if whole == bool(said): return said or 'accepted'
    if wrong := check_folder(out, server.files, whole): return wrong
    server.plan = {}                                   # the server is well again: the same command completes
    fetch_all(server, out)
    return check_folder(out, server.files, True)


def hostile_lists(server, out):
    "Names that lead elsewhere, sizes of terabytes, wrong types: nothing of it is followed"
    from kits_nb.core import CaseError
    image = server.images()[0]
    for d in (image | dict(path='images/../../evil.nii.gz'), image | dict(path='images/case_00000.nii.gz/x'),
              image | dict(lfs=dict(oid='x', size=10)), image | dict(lfs=dict(oid='0'*64, size=2**60)),
              image | dict(lfs=dict(oid='0'*64, size=-1)), image | dict(path=['images']), dict(path=None)):
        server.lists = {'/api/datasets/neheller/KiTS-Challenge-Imaging/tree': json.dumps([d]).encode()}
        try: fetch_all(server, out)
        except CaseError: pass
        finally: server.lists = {}
        if wrong := check_folder(out, server.files, False): return wrong
        if (out.parent/'evil.nii.gz').exists(): return 'written outside of the folder'
    return ''


PROGRAM = """import sys
from kits_nb.data.download import *
download(sys.argv[1], servers=Servers.at(sys.argv[2]), n_workers=2)"""


def killed(server, out, kills=5, seed=0):
    "Kill a real process at random moments, check, and let it finish: ('' or what is wrong, kills that hit)"
    rng, hits = random.Random(seed), 0
    server.plan, server.pace = {}, .4
    line = [sys.executable, '-c', PROGRAM, str(out), server.url]
    for _ in range(kills):
        n = len(server.asked)
        p = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(server.asked) == n and p.poll() is None: time.sleep(.02)
        time.sleep(.2 + rng.random())
        if p.poll() is None: p.kill(); hits += 1
        p.wait()
        if wrong := check_folder(out, server.files, False): return wrong, hits
    server.pace = 0
    n = len(server.asked)
    subprocess.run(line, check=True, capture_output=True, timeout=300)
    if not any(start for _, start in server.asked[n:]) and hits == kills: return 'nothing was resumed', hits
    return check_folder(out, server.files, True), hits


def main():
    n = dict(tried=0, survived=0, kills=0, corrupt=0, wrong=0)
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        server = Server(make_files(d/'src'))
        runs = {k: lambda out, v=v: attack(server, out, *v) for k, v in ATTACKS.items()}
        runs |= {'lists that lead elsewhere': lambda out: hostile_lists(server, out)}
        for i, (name, f) in enumerate(runs.items()): _count(n, name, f(d/str(i)/'out'))
        wrong, hits = killed(server, d/'killed')
        n['kills'] = hits
        _count(n, 'the client is killed', wrong)
        server.shutdown(); server.server_close()
    print(table.line('downloads attacked', n) + f'; corrupt files left: {n["corrupt"]}')
    return n


def _count(n, name, wrong):
    n['tried'] += 1
    n['corrupt'] += 'corrupt' in wrong
    n['wrong' if wrong else 'survived'] += 1
    if wrong: print(f'WRONG downloads: {name}: {wrong}')


if __name__ == '__main__': sys.exit(int(main()['wrong'] > 0))
