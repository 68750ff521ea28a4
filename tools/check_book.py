#!/usr/bin/env python
"""Check that the notebooks read like a book: `python tools/check_book.py`

Prints a row of figures for each notebook of `nbs/book` (`--engine`: for those of `nbs/engine` too), then each
violation with its place: notebook[cell] and line. The exit code is 1 if there are any. Parts of names as
arguments (`07_blocks`) show those notebooks alone.

For chapters of the book: how long its cells are, where the first picture stands, how much the cells assert
and show, the plain-method rule, visible imports, recap, exercises with folded solutions. For every page:
lines of code that fit, named links, sections that the paper has, clean stored outputs, plain words."""
import ast, functools, io, json, re, sys, tokenize
from collections import Counter, namedtuple
from pathlib import Path

from notebooks import FENCE, HEADING, LINK, SOLUTIONS, public_defs, read_book

ROOT = Path(__file__).resolve().parent.parent
LINE = 110                                    # Characters of a line of code
WORDS, CELLS, MEDIAN = (400, 1400), (20, 65), 5
CHECK_LINES, EXPORT_LINES = 10, 40
PICTURE_BY, ASSERTS, SHOWN = 8, 16, 60        # First picture within 8 cells; percent of code cells
PICTURE_KB, NOTEBOOK_KB = 100, 400
SECTIONS = {'1', '2', '3', '3.1', '3.2', '3.3', '4', '5', '6'}
FORBIDDEN = [r'\bFunction\b', r'\bmemory_format\b', r'\bis_compiling\b', r'\.device\.type\b']
TAUGHT = ('kits_nb', 'torch', 'fastai', 'matplotlib')
COINED = ['never lived', 'holds? (?:its|their) tongue', 'by a person or by the night', 'goes on where',
          'costs what an? \\w+ weighs', 'patient\\w* by heart',
          'br(?:ought|ings?|inging) (?:[\\w*]+ ){0,3}to (?:a |the |one )?(?:common )?(?:grid|spacing|\\d)']
CHAPTER = re.compile(r'\b(?:chapter|notebook)s?\s+\d+', re.I)
SECTION = re.compile(r'(?:\b[Ss]ections?|\b[Ss]ec\.|§)\s*(\d+(?:\.\d+)*)'
                     r'(?:(?:,| and| to|-|–)\s*(\d+(?:\.\d+)*))?')
JUNK = {'escape code': r'\x1b\[', 'progress bar': r'\d(?:it/s|s/it)\b|\r(?!\n)|█|<progress|\d%\|',
        'path of a machine': r'(?<![\w.:/-])/(?:root|home|work|tmp|Users|mnt|var/folders|private)/[\w.]',
        'warning': r'\b\w*Warning:|warnings\.warn\('}

Violation = namedtuple('Violation', 'rule place text')


# Rules for a chapter of the book. A rule yields (name, cell or None, line or None, text).

def rule_size(book):
    row = book.figures()
    for key, (low, high) in dict(words=WORDS, cells=CELLS).items():
        if not low <= row[key] <= high: yield key, None, None, f'{row[key]} {key}, not {low} to {high}'
    if row['median'] > MEDIAN: yield 'median', None, None, f'{row["median"]} lines, not {MEDIAN}'
    for c in book.code:
        if c.is_check and len(c.lines) > CHECK_LINES:
            yield 'long check', c, None, f'{len(c.lines)} lines, at most {CHECK_LINES}'


def rule_picture(book):
    pic = book.first_picture
    if not pic: yield 'picture', None, None, 'no picture'
    elif pic[0] > PICTURE_BY: yield 'picture', None, None, f'the first is cell {pic[0]}, not {PICTURE_BY}'


def rule_shares(book):
    row = book.figures()
    for key, least in dict(asserts=ASSERTS, shown=SHOWN).items():
        if row[key] < least: yield key, None, None, f'{row[key]} % of the code cells, not {least}'


def plain_code(source):
    "Code without its strings and comments, line by line"
    lines = source.split('\n')
    for t in tokens(source):
        if t.type not in (tokenize.COMMENT, tokenize.STRING): continue
        for n in range(t.start[0], t.end[0] + 1):
            a = t.start[1] if n == t.start[0] else 0
            b = t.end[1] if n == t.end[0] else len(lines[n - 1])
            lines[n - 1] = lines[n - 1][:a] + ' '*(b - a) + lines[n - 1][b:]
    return lines


def rule_plain(book):
    "The method is written in the framework's own words"
    for c in book.code:
        for n, line in enumerate(plain_code(c.source), 1):
            for m in filter(None, (re.search(o, line) for o in FORBIDDEN)):
                yield 'plain method', c, n, f'`{m[0]}` belongs in the engine room'


def rule_first_import(book):
    "The first visible import is kits_nb.all"
    seen = [c for c in book.code if c.is_import and not c.is_export and not c.is_hidden]
    first = ast.unparse(seen[0].tree.body[0]) if seen else 'none'
    wanted = 'from kits_nb.all import *'
    if first != wanted: yield 'first import', (seen or [None])[0], None, f'it is `{first}`, not `{wanted}`'


def rule_hidden_import(book):
    "Nothing that a reader needs is hidden"
    for c in book.code:
        for n in ast.walk(c.tree) if c.is_unseen else ():
            if isinstance(n, ast.ImportFrom): names = [n.module or '']
            else: names = [a.name for a in n.names] if isinstance(n, ast.Import) else []
            for o in names:
                if o.split('.')[0] in TAUGHT: yield 'hidden import', c, n.lineno, f'no reader sees it: {o}'


def rule_close(book):
    "Recap, exercises, folded solutions"
    heads = {h.lower(): c for c in book.markdown for _, h in HEADING.findall(FENCE.sub('', c.source))}
    if 'recap' not in heads: yield 'recap', None, None, 'no section "Recap"'
    if 'exercises' not in heads: yield 'exercises', None, None, 'no section "Exercises"'
    else:
        first = heads['exercises']
        text = '\n\n'.join(c.source for c in book.markdown if c.index >= first.index)
        n = len(re.findall(r'^\d+\.\s', SOLUTIONS.split(text)[0], re.M))
        if not 2 <= n <= 4: yield 'exercises', first, None, f'{n} (lines that begin with "1. "), not 2 to 4'
        if not SOLUTIONS.search(text): yield 'solutions', first, None, 'no folded callout "Solutions"'


# Rules for every notebook

def rule_lines(book):
    for c in book.code:
        for n, o in c.lines:
            if len(o) > LINE: yield 'wide line', c, n, f'{len(o)} characters, at most {LINE}'
        if c.is_export and len(c.lines) > EXPORT_LINES:
            yield 'long export', c, None, f'{len(c.lines)} lines, at most {EXPORT_LINES} in an exported cell'


def rule_exports(book):
    "The page heads a cell of source with one name: one public name to a cell"
    for c in book.code:
        names = ', '.join(o.name for o in c.defs)
        if c.directive('exports') and len(c.defs) > 1: yield 'names in a cell', c, None, names


def rule_outputs(book):
    "Stored outputs hold what the cell shows, and nothing else"
    for c in book.cells:
        for kind, text in c.texts():
            if kind == 'error': yield 'stored error', c, None, 'the stored output is a traceback'
            elif kind == 'stderr': yield 'stored stderr', c, None, text.strip()[:80]
            elif 'widget' in kind: yield 'stored widget', c, None, 'a widget has no kernel on the site'
            if kind != 'error' and not kind.startswith('application/'):
                found = {rule: re.search(pattern, text) for rule, pattern in JUNK.items()}
                for rule, m in found.items():
                    if m: yield rule, c, None, repr(text[max(0, m.start() - 30):m.end() + 40])
    if book.size > 1000*NOTEBOOK_KB:
        yield 'notebook size', None, None, f'{book.size/1000:.0f} kB, at most {NOTEBOOK_KB}'


def rule_links(book):
    for c in book.cells:
        if c.kind == 'markdown': yield from (('linked code', c, None, o) for o in linked_code(c.source))
        for n, line in enumerate(c.source.split('\n'), 1) if c.kind == 'code' else ():
            if '@eq-' in line: yield 'raw reference', c, n, 'write "eq. (1)" for `@eq-...` in code'


def linked_code(text):
    "nbdev links code names by itself, and makes raw Markdown of one inside a link"
    for bang, label, url in LINK.findall(FENCE.sub('', text)):
        code = '`' in label or (re.search('_|[a-z][A-Z]', label) and label in library_names())
        if code and not bang: yield f'[{label}]({url}): write the bare code name, nbdev links it'


@functools.cache
def library_names(root=ROOT):
    "Functions and classes of the library"
    trees = [ast.parse(p.read_text(encoding='utf8')) for p in (root/'kits_nb').rglob('*.py')]
    return {o.name for tree in trees for o in public_defs(tree)}


# Rules for words, wherever they stand

def tokens(source):
    "The tokens of Python code, as far as it can be read"
    try: yield from tokenize.generate_tokens(io.StringIO(source).readline)
    except (tokenize.TokenError, IndentationError, SyntaxError): return


def said(source):
    "(line, text) of the comments and strings in Python code"
    for t in tokens(source):
        if t.type in (tokenize.COMMENT, tokenize.STRING):
            yield from enumerate(t.string.split('\n'), t.start[0])


def check_words(rows):
    "Numbers of chapters, sections that the paper does not have, and coined words in (line, text) rows"
    for n, text in rows:
        for m in CHAPTER.finditer(text): yield 'chapter number', n, f'"{m[0]}": name and link it'
        for m in SECTION.finditer(text):
            for o in sorted({m[1], m[2] or m[1]} - SECTIONS): yield 'section', n, f'the paper has no {o}'
        for o in COINED:
            if m := re.search(o, text, re.I): yield 'coined words', n, f'"{m[0]}"'


def rule_words(book):
    for c in book.cells:
        rows = said(c.source) if c.kind == 'code' else enumerate(c.source.split('\n'), 1)
        for rule, n, text in check_words(rows): yield rule, c, n, text


BOOK_RULES = [rule_size, rule_picture, rule_shares, rule_plain,
              rule_first_import, rule_hidden_import, rule_close]
RULES = [rule_lines, rule_exports, rule_outputs, rule_links, rule_words]


def check(book):
    "All violations of a notebook"
    found = [v for rule in (BOOK_RULES if book.in_book else []) + RULES for v in rule(book)]
    return [Violation(rule, place(book.name, c and c.index, n), text) for rule, c, n, text in found]


def place(name, cell=None, line=None):
    return name + (f'[{cell}]' if cell is not None else '') + (f' line {line}' if line else '')


# Files that are no notebooks

def check_python(name, text):
    "Lines that are too long, and words, of a Python file; what nbdev exported has been checked in its cells"
    if '\n# AUTOGENERATED!' in text: return []
    long = [(n, len(o)) for n, o in enumerate(text.split('\n'), 1) if len(o) > LINE]
    found = [('wide line', n, f'{k} characters, at most {LINE}') for n, k in long]
    if not name.startswith('tools/'): found += check_words(said(text))
    return [Violation(rule, place(name, line=n), what) for rule, n, what in found]


def check_page(name, text):
    "Words and links of a page that is no notebook"
    found = list(check_words(enumerate(text.split('\n'), 1)))
    found += [('linked code', None, o) for o in linked_code(text)]
    return [Violation(rule, place(name, line=n), what) for rule, n, what in found]


def check_names(files):
    "Two modules never define the same public name; `files` maps a file to its source"
    found = {}
    for name, text in files.items():
        for o in public_defs(ast.parse(text)): found.setdefault(o.name, {})[name] = place(name, line=o.lineno)
    return [Violation('same name', first, f'`{o}` stands also in {", ".join(rest)}')
            for o, places in found.items() for first, *rest in [list(places.values())] if rest]


def heavy_pictures(book):
    "Notes, not violations"
    found = [(place(book.name, c.index), len(b)/1000) for c in book.cells for b in c.pictures()]
    return [f'{at}: a picture of {kb:.0f} kB, {PICTURE_KB} are plenty' for at, kb in found if kb > PICTURE_KB]


def print_table(rows):
    rows = [list(rows[0]), *(list(map(str, r.values())) for r in rows)]
    first, *widths = [max(map(len, column)) for column in zip(*rows)]
    for name, *row in rows: print(name.ljust(first), *(o.rjust(w) for o, w in zip(row, widths)), sep='  ')


def read_all(root=ROOT):
    nbs = root/'nbs'
    paths = [p for d in ('.', 'book', 'engine') for p in sorted((nbs/d).glob('[!_.]*.ipynb'))]
    name = lambda p: p.relative_to(nbs).with_suffix('').as_posix()
    return [read_book(name(p), json.loads(p.read_text(encoding='utf8')), p.stat().st_size) for p in paths]


def check_files(root=ROOT):
    "Violations in the files that are no notebooks"
    read = lambda paths: {p.relative_to(root).as_posix(): p.read_text(encoding='utf8') for p in sorted(paths)}
    library = read(p for p in (root/'kits_nb').rglob('*.py') if p.name != '_modidx.py')
    code = library | read([*root.glob('*.py'), *(root/'tools').rglob('*.py'), *(root/'bench').rglob('*.py')])
    pages = read([*(root/'nbs').glob('*.qmd'), root/'README.md'])
    return [v for f in code.items() for v in check_python(*f)] + check_names(library) + \
           [v for f in pages.items() for v in check_page(*f)]


def main(args, root=ROOT):
    names = [o for o in args if o != '--engine']
    books = [b for b in read_all(root) if not names or any(o in b.name for o in names)]
    if not books: return print('no such notebook') or 1
    if rows := [b.figures() for b in books if b.in_book or names or '--engine' in args]: print_table(rows)
    for note in (o for b in books for o in heavy_pictures(b)): print('note:', note)
    found = [v for b in books for v in check(b)] + ([] if names else check_files(root))
    for v in found: print(f'{v.place}: {v.rule}: {v.text}')
    for rule, n in Counter(v.rule for v in found).most_common(): print(f'{n:5}  {rule}')
    print(f'{len(books)} notebooks, {len(found)} violations')
    return int(bool(found))


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
