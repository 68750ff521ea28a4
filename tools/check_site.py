#!/usr/bin/env python
"""Check the documentation site before anybody reads it: `python tools/check_site.py`

Makes the site's pages as `nbdev-docs` does, in `_proc/`, without Quarto, and checks in them every link,
picture, label, cross-reference, citation and signature, the sidebar, and that the dependencies page names
each requirement. Prints a count for each, then what is broken; the exit code is 1 if anything is."""
import ast, json, os, posixpath, re, sys
from collections import Counter
from configparser import ConfigParser
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

from notebooks import LINK

ROOT = Path(__file__).resolve().parent.parent
REF = re.compile(r'(?<![\w@./\\-])@((?:fig|eq|tbl|sec)-[\w-]+)')
CITE = re.compile(r'(?<![\w@./\\`])@([A-Za-z][\w:-]*\d{4}\w*)')
CODE = re.compile(r'^(```+|~~~+).*?^\1[ \t]*$', re.M | re.S)
SPAN = re.compile(r'(`+)(?!`)(.+?)(?<!`)\1(?!`)', re.S)
MATH = re.compile(r'\$\$.*?\$\$', re.S)
LABEL = re.compile(r'\{#((?:fig|eq|tbl|sec)-[\w-]+)')
SIGNATURE = re.compile(r'^```python\n((?:async )?def .*?)^```', re.M | re.S)


@dataclass
class Page:
    "A processed page: its text, the labels that can be referred to, and its figures"
    path: Path
    name: str = ''                                   # From the top of the site: book/07_blocks.ipynb
    text: str = ''                                   # Markdown without code
    code: list = field(default_factory=list)         # Sources of its code cells
    signatures: list = field(default_factory=list)   # What show_doc shows of a function
    labels: list = field(default_factory=list)       # fig-…, eq-…, tbl-…, sec-…
    anchors: set = field(default_factory=set)        # Ids that a link can end in
    figures: list = field(default_factory=list)      # (label or '', has caption, has alt, has picture)
    output: str = ''                                 # Its HTML file from the top of the site


class Report:
    "What was checked, and what is broken"
    def __init__(self): self.counts, self.broken = Counter(), []
    def __call__(self, kind, ok, where, what=''):
        self.counts[kind] += 1
        if not ok: self.broken.append(f'{where}: {kind}: {what}')


def slug(heading):
    "Pandoc's identifier of a heading"
    text = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading)
    text = re.sub(r'[^\w\s.-]', '', text.lower().replace('`', ''))
    return re.sub(r'^[^a-z]+', '', re.sub(r'\s+', '-', text.strip()))


def anchors_of(text):
    "Ids of the headings and of everything with an explicit {#id}"
    found = set(re.findall(r'\{[^{}\n]*#([\w-]+)[^{}\n]*\}', text))
    for line in re.findall(r'^#{1,6}\s+(.+)$', text, re.M):
        found.add(slug(re.sub(r'\s*\{[^}]*\}\s*$', '', line)))
    return found


def options(source):
    "The #| options at the top of a code cell"
    return {k: v.strip().strip('"\'') for k, v in re.findall(r'^#\|\s*([\w-]+):\s*(.*)$', source, re.M)}


def front_matter(text):
    m = re.match(r'\s*---\n(.*?)\n---\s*$', text, re.S | re.M)
    return (yaml.safe_load(m[1]) or {}) if m else {}


def has_picture(cell):
    return any(k.startswith('image/') for o in cell.get('outputs', []) for k in o.get('data', {}))


def add_code_cell(page, cell):
    "A code cell gives a page figures and, from show_doc, text"
    source = ''.join(cell['source'])
    opts = options(source)
    label = opts.get('label', '')
    page.code.append(source)
    if has_picture(cell) or label.startswith('fig-'):
        page.figures.append((label, 'fig-cap' in opts, 'fig-alt' in opts, has_picture(cell)))
    if label: page.labels.append(label)
    data = [o.get('data', {}) for o in cell.get('outputs', [])]
    text = '\n'.join(''.join(o['text/markdown']) for o in data if 'text/markdown' in o)
    if 'show_doc(' in source: page.signatures += SIGNATURE.findall(text)
    return text


def read_page(path, top):
    "A processed notebook or .qmd as a `Page`"
    page = Page(path, path.relative_to(top).as_posix())
    output = path.with_suffix('.html').name
    if path.suffix == '.ipynb':
        parts = []
        for cell in json.loads(path.read_text(encoding='utf8'))['cells']:
            source = ''.join(cell['source'])
            if cell['cell_type'] == 'code': parts.append(add_code_cell(page, cell))
            elif cell['cell_type'] == 'markdown': parts.append(source)
            else: output = front_matter(source).get('output-file', output)
        raw = '\n\n'.join(parts)
    else: raw = path.read_text(encoding='utf8')
    page.output = posixpath.join(posixpath.dirname(page.name), output)
    page.text = CODE.sub('', raw)
    page.labels += LABEL.findall(page.text)
    page.anchors = anchors_of(page.text) | set(page.labels)
    return page


def check_blocks(page, report):
    "Fences of divs and code must close"
    fences = len(re.findall(r'^(?:```|~~~)', page.text, re.M))
    divs = [len(re.findall(o, page.text, re.M)) for o in (r'^:{3,}\s*\{', r'^:{3,}\s*$')]
    report('code fence closed', fences == 0, page.name, 'opened and not closed')
    report('div closed', divs[0] == divs[1], page.name, f'{divs[0]} opened, {divs[1]} closed')


def check_figures(page, report):
    for label, cap, alt, picture in page.figures:
        needs = {'a stored picture': picture, 'fig-cap': cap, 'fig-alt': alt}
        lacks = [k for k, ok in needs.items() if not ok]
        report('figure', not lacks, page.name, f'{label or "a picture"} lacks {", ".join(lacks)}')
    for o, n in Counter(page.labels).items(): report('label', n == 1, page.name, f'{o} stands {n} times')


def check_references(page, keys, report):
    "Cross-references and citations have what they refer to; the keys that are cited"
    prose = SPAN.sub('', page.text)
    for ref in REF.findall(prose):
        report('cross-reference', ref in page.labels, page.name, f'@{ref} is not on this page')
    cited = CITE.findall(MATH.sub('', prose))
    for key in cited: report('citation', key in keys, page.name, f'@{key} is not in references.bib')
    for source in page.code:
        raw = REF.findall(source)
        report('reference in code', not raw, page.name, f'@{", @".join(raw)} in code stays raw')
    return set(cited)


def check_signatures(page, report):
    "What show_doc shows says what a caller needs"
    for text in page.signatures:
        name = text.split('(')[0].removeprefix('def ')
        private = '__main__.' in text or re.search(r'\._\w+\.', text)
        empty = re.search(r'\(\s*\*args(?::Any)?, \*\*kwargs(?::Any)?\s*\)', text)
        for ok, what in ((not private, 'shows a type by a private path'),
                         (not empty, 'takes (*args, **kwargs): hide it'),
                         ('<built-in' not in text, 'has the type callable: write Callable')):
            report('signature', ok, page.name, f'{name} {what}')


def target_of(url, page, site):
    "(path from the top of the site, or None for one outside; anchor) of a link"
    here = posixpath.dirname(page.name)
    if url.startswith(site): url, here = url[len(site):].lstrip('/') or 'index.html', ''
    u = urlsplit(url)
    if u.scheme or u.netloc: return None, ''
    path = posixpath.normpath(posixpath.join(here, unquote(u.path))) if u.path else page.name
    return path, unquote(u.fragment)


def check_links(page, pages, site, top, report):
    "Links inside the site must lead to a page, a file or a heading; links to elsewhere must be https"
    by_path = {p.name: p for p in pages} | {p.output: p for p in pages}
    text = MATH.sub('', SPAN.sub(lambda m: 'code', page.text))
    for bang, label, url in LINK.findall(text):
        path, anchor = target_of(url, page, site)
        outside_ok = url.startswith(('https://', 'mailto:'))
        if not bang: report('words of a link', bool(label.strip()) and '](' not in label, page.name,
                            f'{label} links to {url}: nbdev links a code name by itself')
        if path is None: report('outside link', outside_ok, page.name, f'{url}: not https')
        elif bang: report('image', (top/path).is_file(), page.name, f'{url} is missing')
        else:
            target = by_path.get(path)
            report('link', target is not None or (top/path).is_file(), page.name, f'{url} leads nowhere')
            if anchor and target is not None:
                report('anchor', anchor in target.anchors, page.name, f'{url}: no such heading on that page')
    for alt, url, attrs in re.findall(r'!\[([^\]]*)\]\(([^)\s]+)[^)]*\)(\{[^}]*\})?', text):
        ok = bool(alt.strip()) or 'fig-alt' in attrs
        report('image in words', ok, page.name, f'{url} has no alternative text')


def entries(node):
    "Every page that a sidebar or navbar names"
    if isinstance(node, str): return [node] if re.search(r'\.(ipynb|qmd)$', node) else []
    if isinstance(node, list): return [e for o in node for e in entries(o)]
    keys = ('contents', 'href', 'file', 'left', 'right')
    return [e for k in keys if k in node for e in entries(node[k])] if isinstance(node, dict) else []


def check_sidebar(config, pages, report):
    "Every page stands in the sidebar once, chapters in the order of their numbers"
    names, website = {p.name for p in pages}, config['website']
    sidebar = entries(website['sidebar'])
    for e in sidebar + entries(website.get('navbar', {})):
        report('sidebar entry', e in names, '_quarto.yml', f'{e} is not a page')
    for n in sorted(names):
        times = sidebar.count(n)
        report('page in sidebar', times == 1, '_quarto.yml', f'{n} stands {times} times in it')
    for folder in ('book/', 'engine/'):
        chapters = [e for e in sidebar if e.startswith(folder)]
        out = [b for a, b in zip(chapters, chapters[1:]) if b < a]
        report('sidebar order', not out, '_quarto.yml', f'{", ".join(out)}: not in the order of the numbers')
    for html, n in Counter(p.output for p in pages).items():
        report('address', n == 1, html, f'{n} pages have it')


def check_pictures_of(config, top, report):
    "Favicon and social cards exist"
    website = config['website']
    cards = [website.get(k) for k in ('open-graph', 'twitter-card')]
    named = [website.get('favicon'), website.get('image')]
    named += [o.get('image') for o in cards if isinstance(o, dict)]
    for o in filter(None, named):
        report('site picture', (top/o.lstrip('/')).is_file(), '_quarto.yml', f'{o} is missing')


def imported(root):
    "Packages that the library imports, other than Python's own"
    trees = [ast.parse(p.read_text(encoding='utf8')) for p in (root/'kits_nb').rglob('*.py')]
    nodes = [n for t in trees for n in ast.walk(t)]
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}
    names = {o.split('.')[0] for o in names} - set(sys.stdlib_module_names) - {'kits_nb'}
    names -= {'triton'}         # PyTorch's own compiler, which it brings where it has one
    return {dict(PIL='pillow', IPython='ipython').get(o, o) for o in names}


def requirements(root):
    "Names of all packages that settings.ini requires"
    parser = ConfigParser(delimiters=['='], interpolation=None)
    parser.read(root/'settings.ini', encoding='utf8')
    lines = [o for k, v in parser['DEFAULT'].items() if k.endswith('requirements') for o in v.split('\n')]
    return {re.split(r'[<>=!~;\[ ]', o.strip())[0] for o in lines if o.strip()}


def check_requirements(root, report):
    "The dependencies page has a row for each requirement of settings.ini, and no other"
    wanted, page = requirements(root), root/'nbs/dependencies.qmd'
    text = page.read_text(encoding='utf8') if page.exists() else ''
    rows = dict(re.findall(r'^\|\s*`([\w.-]+)`\s*\|[^|]*\|\s*([^|]*?)\s*\|', text, re.M))
    for o in imported(root):
        report('import required', o in wanted, 'settings.ini', f'kits_nb imports {o}, which is not required')
    for o in wanted | set(rows):
        what = 'not in settings.ini' if o not in wanted else 'no reason given'
        ok = o in wanted and len(rows.get(o, '').split()) > 4
        report('requirement explained', ok, 'dependencies.qmd', f'{o}: {what}')


def check_imports(path, where, report):
    """nbdev runs each cell that holds an import, and no other, to make the pages: such a cell must not need
    its neighbours. Exported cells may."""
    for i, cell in enumerate(json.loads(path.read_text(encoding='utf8'))['cells']):
        source = ''.join(cell['source'])
        runs = not re.search(r'^#\|\s*(exports?|exporti|eval:\s*false)\b', source, re.M)
        if cell['cell_type'] != 'code' or not runs: continue
        try: tree = ast.parse(re.sub(r'^\s*[%!].*$', 'pass', source, flags=re.M))
        except SyntaxError: continue
        imports = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
        if imports: report('import cell', len(imports) == len(tree.body), f'{where}[{i}]',
                           'holds imports and other code: give the imports a cell of their own')


def check_title(path, where, report):
    "nbdev makes the first cell the page's head, and drops whatever else stands in it"
    first = ''.join(json.loads(path.read_text(encoding='utf8'))['cells'][0]['source'])
    report('title', re.fullmatch(r'# [^\n]+\n\n> [^\n]+\n?', first) is not None, where,
           'the first cell must be a title, an empty line and one line of summary after >, and no more')


def make_pages(root):
    "Process the notebooks for the site; the folder"
    from nbdev.config import get_config
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    os.chdir(root)
    refresh_quarto_yml()
    return proc_nbs(get_config().nbs_path, n_workers=2, force=True)


def check_pages(top, report):
    "Everything that can be seen in the processed pages below `top`"
    config = yaml.safe_load((top/'_quarto.yml').read_text(encoding='utf8'))
    bibliography = (top/config['bibliography']).read_text(encoding='utf8')
    keys = re.findall(r'^@\w+\{\s*([^,\s]+)', bibliography, re.M)
    paths = [p for p in sorted(top.rglob('[!_.]*')) if p.suffix in ('.ipynb', '.qmd')]
    pages, cited = [read_page(p, top) for p in paths], set()
    for page in pages:
        report('page', len(page.text.split()) > 60, page.name, 'has fewer than 60 words')
        check_blocks(page, report); check_figures(page, report); check_signatures(page, report)
        check_links(page, pages, config['website']['site-url'], top, report)
        cited |= check_references(page, keys, report)
    for key in keys:
        report('bibliography entry', key in cited and keys.count(key) == 1, config['bibliography'],
               f'{key} is cited nowhere, or stands twice')
    check_sidebar(config, pages, report)
    check_pictures_of(config, top, report)


def main(root=ROOT):
    report, nbs = Report(), root/'nbs'
    for p in sorted(nbs.rglob('[!_.]*.ipynb')):
        where = p.relative_to(nbs).as_posix()
        check_title(p, where, report); check_imports(p, where, report)
    if report.broken: return report
    try: top = make_pages(root)
    except Exception as e:   # the message names the notebook and the cell
        report('pages made', False, 'nbs', str(e))
        return report
    check_pages(top, report)
    check_requirements(root, report)
    return report


if __name__ == '__main__':
    result = main()
    for kind, n in result.counts.items(): print(f'{n:5}  {kind}')
    for line in result.broken: print('broken:', line)
    print(f'{sum(result.counts.values()) - len(result.broken)} passed, {len(result.broken)} failed')
    sys.exit(bool(result.broken))
