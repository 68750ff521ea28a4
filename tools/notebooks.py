"Notebooks as data, for the checks: cells with their sections, and what can be measured in them."
import ast, base64, functools, re
from dataclasses import dataclass, field
from statistics import median

HIDDEN = re.compile(r'^#\|\s*(?:echo|include):\s*false', re.M)
HEADING = re.compile(r'^(#{1,6})\s+(.+?)\s*(?:\{[^}]*\})?\s*$', re.M)
FENCE = re.compile(r'^(```+|~~~+).*?^\1[ \t]*$', re.M | re.S)
LINK = re.compile(r'(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(<?([^)\s>]+)>?(?:\s+"[^"]*")?\)')
SOLUTIONS = re.compile(r'^:{3,}\s*\{[^}\n]*\.callout-\w+(?=[^}\n]*collapse="true")'
                       r'[^}\n]*title="Solutions?"[^}\n]*\}', re.M)
MERMAID_OR_IMAGE = re.compile(r'!\[|<img|^```\{mermaid\}', re.M)
TEST_CALL = re.compile(r'_?test_|_?assert_|(is_)?same_|ExceptionExpected|raises|expect_error')
ANSWER = re.compile(r'\banswer(?:s|ed)?\b', re.I)
DEFS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def is_patch(o): return any('patch' in ast.unparse(d) for d in o.decorator_list)


def public_defs(tree):
    "The functions and classes without an underscore at a module's top level"
    return [o for o in tree.body if isinstance(o, DEFS) and not o.name.startswith('_') and not is_patch(o)]


@dataclass
class Cell:
    index: int
    id: str
    kind: str                                 # code, markdown or raw
    source: str
    outputs: list = field(default_factory=list)
    section: str = ''                         # Heading that it stands under

    def directive(self, *names):
        "Whether the cell has one of these `#|` directives"
        return bool(re.search(rf'^#\|\s*(?:{"|".join(names)})\b(?!-)', self.source, re.M))

    @functools.cached_property
    def lines(self):
        "(line in the cell, text) of each line of code"
        rows = enumerate(self.source.split('\n'), 1)
        return [(n, o) for n, o in rows if o.strip() and not re.match(r'\s*#\|', o)]

    @functools.cached_property
    def tree(self):
        "Its syntax tree, with magics left out; empty if it is no Python"
        source = '' if self.source.startswith('%%') else re.sub(r'^\s*[%!].*$', '', self.source, flags=re.M)
        try: return ast.parse(source)
        except SyntaxError: return ast.parse('')

    @property
    def is_code(self): return self.kind == 'code' and bool(self.lines)

    @property
    def is_import(self):
        body = self.tree.body
        return bool(body) and all(isinstance(o, (ast.Import, ast.ImportFrom)) for o in body)

    @property
    def is_export(self): return self.directive('exports?', 'exporti')

    @property
    def is_check(self): return self.section.lower() == 'checks'

    @property
    def is_unseen(self):
        "Whether the page leaves the code out, and the notebook says so"
        return self.directive('hide') or bool(HIDDEN.search(self.source))

    @property
    def is_hidden(self): return self.is_unseen or self.directive('export', 'exporti', 'default_exp')

    @property
    def defs(self): return public_defs(self.tree)

    @property
    def asserts(self):
        "Whether it asserts: `assert`, or a call of a test function"
        calls = [n.func for n in ast.walk(self.tree) if isinstance(n, ast.Call)]
        names = [getattr(o, 'id', getattr(o, 'attr', '')) for o in calls]
        return any(isinstance(n, ast.Assert) for n in ast.walk(self.tree)) or any(map(TEST_CALL.match, names))

    def texts(self):
        "What the stored outputs say: (kind of output, text)"
        for o in self.outputs:
            if o['output_type'] == 'stream': yield o.get('name', 'stdout'), ''.join(o['text'])
            if o['output_type'] == 'error': yield 'error', '\n'.join(o.get('traceback', []))
            for kind, data in o.get('data', {}).items():
                if kind.startswith(('text/', 'application/')): yield kind, as_text(data)

    def pictures(self):
        "The bytes of each stored picture"
        for o in self.outputs:
            data = {k: as_text(v) for k, v in o.get('data', {}).items()}
            for kind, text in data.items():
                if kind == 'image/svg+xml': yield text.encode()
                elif kind.startswith('image/'): yield base64.b64decode(text)
            for text in re.findall(r'data:image/\w+;base64,([\w+/=]+)', data.get('text/html', '')):
                yield base64.b64decode(text)

    @property
    def shows_picture(self):
        if self.kind == 'markdown': return bool(MERMAID_OR_IMAGE.search(self.source))
        return any(True for _ in self.pictures())

    @property
    def prose(self):
        "The words of a Markdown cell: no code, formula, address, directive or folded solution"
        text = FENCE.sub('', self.source) if self.kind == 'markdown' else ''
        if m := SOLUTIONS.search(text): text = text[:m.start()]
        text = re.sub(r'\$\$.*?\$\$(?:\s*\{#[\w-]+\})?|\$[^$\n]+\$', ' x ', text, flags=re.S)
        text = LINK.sub(lambda m: '' if m[1] else m[2], text)
        return re.sub(r'^:{3,}.*$|<[^>\n]+>|\{[^}\n]*\}', '', text, flags=re.M)

    @property
    def height(self):
        "Pixels that it takes on a page, about"
        if self.kind == 'markdown':
            return 40*len(HEADING.findall(self.source)) + 27*(len(self.prose.split())//13 + 1)
        if self.is_hidden or not self.is_code: return 0
        said = sum(min(t.count('\n') + 1, 40) for k, t in self.texts() if k in ('stdout', 'text/plain'))
        code = 40 if self.is_export else 20*len(self.lines) + 30
        return code + 19*said + 380*sum(1 for _ in self.pictures())


def as_text(data): return data if isinstance(data, str) else ''.join(map(str, data))


@dataclass
class Book:
    "A notebook: its cells, and where it stands"
    name: str                                 # book/07_blocks
    cells: list
    size: int = 0                             # Bytes of the file

    @property
    def in_book(self): return self.name.startswith('book/')

    @property
    def markdown(self): return [c for c in self.cells if c.kind == 'markdown']

    @property
    def code(self): return [c for c in self.cells if c.is_code]

    @property
    def teaching(self):
        "Code cells that are more than imports, and neither checks nor hidden"
        return [c for c in self.code if not (c.is_import or c.is_check or c.directive('hide'))]

    @property
    def first_picture(self):
        "(cells, screens) up to the first picture; None without one"
        for k, c in enumerate(self.cells):
            if c.shows_picture: return k + 1, sum(o.height for o in self.cells[:k])/800

    @property
    def words(self): return sum(len(re.findall(r"[\w'’²³-]*\w", c.prose)) for c in self.markdown)

    def figures(self):
        "Its row in the table"
        lines, pic = [len(c.lines) for c in self.teaching], self.first_picture
        answers = sum(len(ANSWER.findall(c.prose)) for c in self.markdown)
        return dict(notebook=self.name, words=self.words, cells=len(self.cells), code=len(self.code),
                    median=median(lines or [0]), longest=max([len(c.lines) for c in self.code] or [0]),
                    picture=pic[0] if pic else '-', screens=f'{pic[1]:.1f}' if pic else '-',
                    asserts=percent([c.asserts for c in self.code]),
                    shown=percent([c.outputs for c in self.teaching if not c.is_export]),
                    kB=round(self.size/1000), answers=answers)


def percent(values): return round(100*sum(map(bool, values))/len(values)) if values else 0


def read_book(name, nb, size=0):
    "A parsed notebook as a `Book`"
    cells, section = [], ''
    for i, c in enumerate(nb['cells']):
        source = as_text(c['source'])
        heads = HEADING.findall(FENCE.sub('', source)) if c['cell_type'] == 'markdown' else []
        if heads: section = heads[-1][1]
        cells.append(Cell(i, c.get('id', ''), c['cell_type'], source, c.get('outputs', []), section))
    return Book(name, cells, size)
