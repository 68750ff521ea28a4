#!/usr/bin/env python
"""Check that the notebooks read like a book: `python tools/check_book.py`

Prints a row of figures for each notebook of `nbs/book` (`--engine`: also for those of `nbs/engine`), then each
violation with its place: notebook[cell] and line. The exit code is 1 if there are any. A notebook's name as an
argument (`07_blocks`) shows that one's row and violations alone.

What holds for a chapter of the book only: how long its cells are, where its first picture stands, how much it
asserts and shows, the plain-method rule, visible imports, recap, exercises with folded solutions. What holds for
every page: lines of code that fit, named links, sections that the paper has, clean stored outputs, plain words."""
import ast, base64, functools, io, json, re, sys, tokenize
from collections import Counter, namedtuple
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
LINE = 110                                    # Characters of a line of code
WORDS, CELLS, MEDIAN = (400, 1400), (20, 65), 5
CHECK_LINES, EXPORT_LINES = 10, 40
PICTURE_BY, ASSERTS, SHOWN = 8, 1/6, .6       # First picture within 8 cells; shares of code cells
PICTURE_KB, NOTEBOOK_KB = 100, 400
SECTIONS = {'1', '2', '3', '3.1', '3.2', '3.3', '4', '5', '6'}
FORBIDDEN = {'Function', 'memory_format', 'is_compiling'}
COINED = ['never lived', 'holds? (?:its|their) tongue', 'by a person or by the night', 'goes on where',
          'costs what a (?:crop|volume) weighs', 'br(?:ought|ings?|inging) (?:\\w+ ){0,3}to (?:a |the )?(?:grid|spacing|\\d)',
          'resampled? by heart', 'the nights?\\b(?= (?:run|train|end|go))', 'turned? (?:in)?to (?:the )?RAS']

Violation = namedtuple('Violation', 'rule place text')


# Reading a notebook

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
    def is_import(self): return bool(self.tree.body) and all(isinstance(o, (ast.Import, ast.ImportFrom)) for o in self.tree.body)
    @property
    def is_export(self): return self.directive('exports?', 'exporti')
    @property
    def is_check(self): return self.section.lower() == 'checks'
    @property
    def is_hidden(self): return self.directive('hide', 'export', 'exporti', 'default_exp') or bool(HIDDEN.search(self.source))


HIDDEN = re.compile(r'^#\|\s*(?:echo|include):\s*false', re.M)
HEADING = re.compile(r'^(#{1,6})\s+(.+?)\s*(?:\{[^}]*\})?\s*$', re.M)
FENCE = re.compile(r'^(```+|~~~+).*?^\1[ \t]*$', re.M | re.S)
LINK = re.compile(r'(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(<?([^)\s>]+)>?(?:\s+"[^"]*")?\)')
SOLUTIONS = re.compile(r'^:{3,}\s*\{[^}\n]*\.callout-\w+(?=[^}\n]*collapse="true")[^}\n]*title="Solutions?"[^}\n]*\}', re.M)


@dataclass
class Book:
    "A notebook: its cells, and where it stands"
    name: str                                 # book/07_blocks
    cells: list
    size: int = 0                             # Bytes of the file
    @property
    def code(self): return [c for c in self.cells if c.is_code and not c.directive('default_exp')]
    @property
    def teaching(self): return [c for c in self.code if not (c.is_import or c.is_check or c.directive('hide'))]
    @property
    def in_book(self): return self.name.startswith('book/')


def read_book(name, nb, size=0):
    "A parsed notebook as a `Book`"
    cells, section = [], ''
    for i, c in enumerate(nb['cells']):
        source = ''.join(c['source'])
        if c['cell_type'] == 'markdown' and (heads := HEADING.findall(FENCE.sub('', source))): section = heads[-1][1]
        cells.append(Cell(i, c.get('id', ''), c['cell_type'], source, c.get('outputs', []), section))
    return Book(name, cells, size)


def place(book, cell, line=None): return f'{book.name}[{cell.index}]' + (f' line {line}' if line else '')


def prose(cell):
    "The words of a Markdown cell: no code, formula, address, directive or folded solution"
    text = FENCE.sub('', cell.source)
    if m := SOLUTIONS.search(text): text = text[:m.start()]
    text = re.sub(r'\$\$.*?\$\$(?:\s*\{#[\w-]+\})?|\$[^$\n]+\$', ' x ', text, flags=re.S)
    text = LINK.sub(lambda m: '' if m[1] else m[2], text)
    return re.sub(r'^:{3,}.*$|<[^>\n]+>|\{[^}\n]*\}', '', text, flags=re.M)


def words(book): return sum(len(re.findall(r"[\w'’²³-]*\w", prose(c))) for c in book.cells if c.kind == 'markdown')


# What a cell gives

def output_texts(cell):
    "What the stored outputs say: (kind of output, text)"
    for o in cell.outputs:
        if o['output_type'] == 'stream': yield o.get('name', 'stdout'), ''.join(o['text'])
        if o['output_type'] == 'error': yield 'error', '\n'.join(o.get('traceback', []))
        for kind, data in o.get('data', {}).items():
            if kind.startswith(('text/', 'application/')): yield kind, data if isinstance(data, str) else ''.join(map(str, data))


def pictures(cell):
    "(type, bytes) of each stored picture"
    for o in cell.outputs:
        for kind, data in o.get('data', {}).items():
            data = data if isinstance(data, str) else ''.join(data)
            if kind == 'image/svg+xml': yield kind, data.encode()
            elif kind.startswith('image/'): yield kind, base64.b64decode(data)
        html = ''.join(o.get('data', {}).get('text/html', ''))
        for kind, data in re.findall(r'data:(image/\w+);base64,([\w+/=]+)', html): yield kind, base64.b64decode(data)


def shows_picture(cell):
    return any(True for _ in pictures(cell)) or (cell.kind == 'markdown' and bool(re.search(r'!\[|<img|^```\{mermaid\}', cell.source, re.M)))


def asserts(cell):
    "Whether a cell asserts: `assert`, or a call of a test function"
    for n in ast.walk(cell.tree):
        if isinstance(n, ast.Assert): return True
        called = n.func if isinstance(n, ast.Call) else None
        name = getattr(called, 'id', getattr(called, 'attr', '')) if called else ''
        if re.match(r'_?test_|_?assert_|(is_)?same_|ExceptionExpected|raises|expect_error', name): return True
    return False


def height(cell):
    "Pixels that a cell takes on a page, about"
    if cell.kind == 'markdown': return 40*len(HEADING.findall(cell.source)) + 27*(len(prose(cell).split())//13 + 1)
    if cell.is_hidden or not cell.is_code: return 0
    said = sum(min(t.count('\n') + 1, 40) for k, t in output_texts(cell) if k in ('stdout', 'text/plain'))
    folded = 40 if cell.is_export else 20*len(cell.lines) + 30
    return folded + 19*said + 380*sum(1 for _ in pictures(cell))


def first_picture(book):
    "(cells, screens) before the first picture; None without one"
    for k, c in enumerate(book.cells):
        if shows_picture(c): return k + 1, sum(map(height, book.cells[:k]))/800
    return None


def figures(book):
    "The row of a notebook in the table"
    lines = [len(c.lines) for c in book.teaching]
    shown = [c for c in book.teaching if not c.is_export]
    pic = first_picture(book)
    share = lambda f, cells: round(100*sum(map(bool, map(f, cells)))/len(cells)) if cells else 0
    return dict(notebook=book.name, words=words(book), cells=len(book.cells), code=len(book.code),
                median=median(lines) if lines else 0, longest=max((len(c.lines) for c in book.code), default=0),
                wide=sum(len(o) > LINE for c in book.code for _, o in c.lines),
                picture=pic[0] if pic else '-', screens=f'{pic[1]:.1f}' if pic else '-',
                asserts=share(asserts, book.code), shown=share(lambda c: c.outputs, shown), kB=round(book.size/1000),
                answers=sum(len(ANSWER.findall(prose(c))) for c in book.cells if c.kind == 'markdown'))


ANSWER = re.compile(r'\banswer(?:s|ed)?\b', re.I)


# Rules for a chapter of the book: each yields violations

def rule_size(book):
    "Words, cells, lines of code and stored bytes"
    row = figures(book)
    for key, (low, high) in dict(words=WORDS, cells=CELLS).items():
        if not low <= row[key] <= high: yield Violation(key, book.name, f'{row[key]} {key}; {low} to {high} are right')
    if row['median'] > MEDIAN: yield Violation('median', book.name, f'the median code cell has {row["median"]} lines, at most {MEDIAN} are right')
    for c in book.code:
        limit = CHECK_LINES if c.is_check else 0
        if limit and len(c.lines) > limit: yield Violation('long check', place(book, c), f'{len(c.lines)} lines in a cell of the Checks; at most {limit}')


def rule_picture(book):
    pic = first_picture(book)
    if not pic: yield Violation('picture', book.name, 'no picture')
    elif pic[0] > PICTURE_BY: yield Violation('picture', book.name, f'the first picture is cell {pic[0]} of the chapter; it belongs within the first {PICTURE_BY}')


def rule_shares(book):
    if not book.code: return
    row = figures(book)
    if row['asserts'] < 100*ASSERTS - .5: yield Violation('asserts', book.name, f'{row["asserts"]} % of the code cells assert; one in six should')
    if row['shown'] < 100*SHOWN: yield Violation('shown', book.name, f'{row["shown"]} % of the teaching cells show a value; {SHOWN:.0%} should')


def plain_code(source):
    "Code without its strings and comments, line by line"
    lines = source.split('\n')
    try:
        for t in tokenize.generate_tokens(io.StringIO(source).readline):
            if t.type not in (tokenize.COMMENT, tokenize.STRING): continue
            for n in range(t.start[0] - 1, t.end[0]):
                a, b = t.start[1] if n == t.start[0] - 1 else 0, t.end[1] if n == t.end[0] - 1 else len(lines[n])
                lines[n] = lines[n][:a] + ' '*(b - a) + lines[n][b:]
    except (tokenize.TokenError, IndentationError, SyntaxError): pass
    return lines


def rule_plain(book):
    "The method is written in the framework's own words"
    for c in book.code:
        for n, line in enumerate(plain_code(c.source), 1):
            found = [w for w in sorted(FORBIDDEN) if re.search(rf'\b{w}\b', line)] + ['.device.type']*('.device.type' in line)
            for w in found: yield Violation('plain method', place(book, c, n), f'`{w}` does not belong in a chapter of the book')


def rule_imports(book):
    "The first visible import is kits_nb.all; nothing that a reader needs is hidden"
    seen = [c for c in book.code if c.is_import and not c.is_export and not c.is_hidden]
    first = ast.unparse(seen[0].tree.body[0]) if seen else 'none'
    if first != 'from kits_nb.all import *': yield Violation('first import', place(book, seen[0]) if seen else book.name, f'the first visible import is `{first}`, not `from kits_nb.all import *`')
    for c in book.code:
        if not (c.directive('hide') or HIDDEN.search(c.source)): continue
        for n in ast.walk(c.tree):
            names = [n.module or ''] if isinstance(n, ast.ImportFrom) else [a.name for a in n.names] if isinstance(n, ast.Import) else []
            for o in names:
                if o.split('.')[0] in ('kits_nb', 'torch', 'fastai', 'matplotlib'): yield Violation('hidden import', place(book, c, n.lineno), f'{o} is imported where no reader sees it')


def rule_close(book):
    "Recap, exercises, folded solutions"
    heads = {h.lower(): c for c in book.cells if c.kind == 'markdown' for _, h in HEADING.findall(FENCE.sub('', c.source))}
    if 'recap' not in heads: yield Violation('recap', book.name, 'no section "Recap"')
    if 'exercises' not in heads: yield Violation('exercises', book.name, 'no section "Exercises"'); return
    rest = book.cells[heads['exercises'].index:]
    text = '\n\n'.join(c.source for c in rest if c.kind == 'markdown')
    asked, folded, _ = (SOLUTIONS.split(text, maxsplit=1) + ['', ''])[:3] if SOLUTIONS.search(text) else (text, '', '')
    n = len(re.findall(r'^\d+\.\s', asked, re.M))
    if not 2 <= n <= 4: yield Violation('exercises', place(book, rest[0]), f'{n} exercises (numbered "1. "); 2 to 4 are right')
    if not SOLUTIONS.search(text): yield Violation('solutions', place(book, rest[0]), 'no folded callout with the title "Solutions" after the exercises')


# Rules for every notebook

def rule_lines(book):
    for c in book.cells:
        if c.kind != 'code': continue
        for n, o in c.lines:
            if len(o) > LINE: yield Violation('wide line', place(book, c, n), f'{len(o)} characters; at most {LINE}')
        if c.is_export and len(c.lines) > EXPORT_LINES: yield Violation('long export', place(book, c), f'{len(c.lines)} lines in an exported cell; at most {EXPORT_LINES}')


def rule_exports(book):
    "The page heads a cell of source with one name: one public name to a cell"
    for c in book.code:
        if not c.directive('exports'): continue
        names = [o.name for o in c.tree.body if isinstance(o, (ast.FunctionDef, ast.ClassDef)) and not o.name.startswith('_') and not is_patch(o)]
        if len(names) > 1: yield Violation('names in a cell', place(book, c), 'one cell exports ' + ', '.join(names))


def is_patch(o): return any('patch' in ast.unparse(d) for d in o.decorator_list)


JUNK = [('escape code', re.compile(r'\x1b\[')), ('progress bar', re.compile(r'\d(?:it/s|s/it)\b|\r(?!\n)|█|<progress|\d%\|')),
        ('path of a machine', re.compile(r'(?<![\w.:/-])/(?:root|home|work|tmp|Users|mnt|var/folders|private)/[\w.]')),
        ('warning', re.compile(r'\b\w*Warning:|warnings\.warn\('))]


def rule_outputs(book):
    "Stored outputs hold what the cell shows, and nothing else"
    for c in book.cells:
        for kind, text in output_texts(c):
            if kind == 'error': yield Violation('stored error', place(book, c), 'the stored output is a traceback')
            if kind == 'stderr': yield Violation('stored stderr', place(book, c), text.strip()[:80])
            if 'widget' in kind: yield Violation('stored widget', place(book, c), 'a widget has no kernel on the site')
            if kind.startswith('application/'): continue
            for rule, pattern in JUNK:
                if m := pattern.search(text if kind != 'error' else ''): yield Violation(rule, place(book, c), f'stored output: {text[max(0, m.start() - 30):m.end() + 40]!r}')
    if book.size > 1000*NOTEBOOK_KB: yield Violation('notebook size', book.name, f'{book.size/1000:.0f} kB; at most {NOTEBOOK_KB}')


def rule_links(book):
    "nbdev links code names by itself, and makes raw Markdown of one inside a link"
    for c in book.cells:
        if c.kind == 'code':
            for n, line in enumerate(c.source.split('\n'), 1):
                if '@eq-' in line: yield Violation('raw reference', place(book, c, n), 'write "eq. (1)" for `@eq-...` in code')
        if c.kind == 'markdown': yield from linked_code(FENCE.sub('', c.source), place(book, c))


def linked_code(text, where):
    for bang, label, url in LINK.findall(text):
        if bang: continue
        if '`' in label: yield Violation('linked code', where, f'[{label}]({url}): write the bare code name, nbdev links it')
        elif re.search('_|[a-z][A-Z]', label) and label in library_names(): yield Violation('linked code', where, f'[{label}]({url}): write `{label}`')


@functools.cache
def library_names(root=ROOT):
    "Functions and classes of the library"
    files = (root/'kits_nb').rglob('*.py')
    return {o.name for p in files for o in ast.parse(p.read_text(encoding='utf8')).body if isinstance(o, (ast.FunctionDef, ast.ClassDef))}


# Rules for words, wherever they stand

def said(source):
    "(line, text) of the comments and docstrings in Python code"
    try:
        for t in tokenize.generate_tokens(io.StringIO(source).readline):
            if t.type == tokenize.COMMENT or (t.type == tokenize.STRING and re.match(r'[rRbBuU]*("|\')', t.string)):
                yield from enumerate(t.string.split('\n'), t.start[0])
    except (tokenize.TokenError, IndentationError, SyntaxError): return


def check_words(rows, where):
    "Numbers of chapters, sections that the paper does not have, and coined words in (line, text) rows"
    for n, text in rows:
        at = f'{where} line {n}'
        for m in re.finditer(r'\b(?:chapter|notebook)s?\s+\d+', text, re.I): yield Violation('chapter number', at, f'"{m[0]}": name and link it')
        for m in re.finditer(r'(?:\b[Ss]ections?|\b[Ss]ec\.|§)\s*(\d+(?:\.\d+)*)(?:(?:,| and| to|-|–)\s*(\d+(?:\.\d+)*))?', text):
            for s in filter(None, m.groups()):
                if s not in SECTIONS: yield Violation('section', at, f'"{m[0]}": the paper has no section {s}')
        for pattern in COINED:
            if m := re.search(pattern, text, re.I): yield Violation('coined words', at, f'"{m[0]}"')


def rule_words(book):
    for c in book.cells:
        rows = said(c.source) if c.kind == 'code' else enumerate(c.source.split('\n'), 1)
        yield from check_words(rows, place(book, c))


BOOK_RULES = [rule_size, rule_picture, rule_shares, rule_plain, rule_imports, rule_close]
RULES = [rule_lines, rule_exports, rule_outputs, rule_links, rule_words]


def check(book):
    "All violations of a notebook"
    return [v for rule in (BOOK_RULES if book.in_book else []) + RULES for v in rule(book)]


# Files that are no notebooks

def check_python(name, text):
    "Lines that are too long, and words, of a Python file; what nbdev exported has been checked in its cells"
    if '\n# AUTOGENERATED!' in text: return []
    wide = [(n, len(o)) for n, o in enumerate(text.split('\n'), 1) if len(o) > LINE]
    found = [Violation('wide line', f'{name} line {n}', f'{k} characters; at most {LINE}') for n, k in wide]
    return found + ([] if name.startswith('tools/') else list(check_words(said(text), name)))


def check_page(name, text):
    "Words and links of a .qmd page"
    return list(check_words(enumerate(text.split('\n'), 1), name)) + list(linked_code(FENCE.sub('', text), name))


def check_names(modules):
    "Two modules never export the same name; `modules` maps a file to its source"
    found = {}
    for name, text in modules.items():
        for o in ast.parse(text).body:
            if isinstance(o, (ast.FunctionDef, ast.ClassDef)) and not o.name.startswith('_') and not is_patch(o):
                found.setdefault(o.name, []).append(f'{name} line {o.lineno}')
    return [Violation('same name', places[0], f'`{o}` stands also in {", ".join(places[1:])}') for o, places in found.items() if len(places) > 1]


def heavy_pictures(book):
    "Warnings, not violations"
    return [f'{place(book, c)}: a stored picture of {len(b)/1000:.0f} kB (aim at {PICTURE_KB} at most)'
            for c in book.cells for _, b in pictures(c) if len(b) > 1000*PICTURE_KB]


def print_table(rows):
    widths = {k: max(len(k), *(len(str(r[k])) for r in rows)) for k in rows[0]}
    for r in [{k: k for k in rows[0]}, *rows]:
        print('  '.join(str(v).ljust(widths[k]) if k == 'notebook' else str(v).rjust(widths[k]) for k, v in r.items()))


def main(names, root=ROOT):
    engine, names = '--engine' in names, [n for n in names if n != '--engine']
    nbs = root/'nbs'
    paths = [p for d in ('.', 'book', 'engine') for p in sorted((nbs/d).glob('[!_.]*.ipynb')) if not names or any(n in str(p) for n in names)]
    books = []
    for p in paths:
        text = p.read_text(encoding='utf8')
        books.append(read_book(p.relative_to(nbs).with_suffix('').as_posix(), json.loads(text), p.stat().st_size))
    if not books: return print('no such notebook') or 1
    if rows := [figures(b) for b in books if b.in_book or engine or names]: print_table(rows)
    found = [v for b in books for v in check(b)]
    if not names:
        files = {p.relative_to(root).as_posix(): p.read_text(encoding='utf8') for d in ('kits_nb', 'tools', 'bench') for p in sorted((root/d).rglob('*.py')) if p.name != '_modidx.py'}
        found += [v for name, text in files.items() for v in check_python(name, text)]
        found += check_names({n: t for n, t in files.items() if n.startswith('kits_nb/')})
        for p in [*sorted(nbs.glob('*.qmd')), root/'README.md']: found += check_page(p.relative_to(root).as_posix(), p.read_text(encoding='utf8'))
    for line in (w for b in books for w in heavy_pictures(b)): print('note:', line)
    for v in found: print(f'{v.place}: {v.rule}: {v.text}')
    for rule, n in Counter(v.rule for v in found).most_common(): print(f'{n:5}  {rule}')
    print(f'{len(books)} notebooks, {len(found)} violations')
    return int(bool(found))


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
