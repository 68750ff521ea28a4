#!/usr/bin/env python
"""Check the documentation site before anybody reads it: `python tools/check_site.py`

Makes the site's pages as `nbdev-docs` does, in `_proc/`, without Quarto, and checks in them every link, picture,
label, cross-reference and citation, the sidebar, and that the dependencies page names each requirement. Prints a
count for each, then what is broken; the exit code is 1 if anything is."""
import ast, json, re, sys
from collections import Counter
from configparser import ConfigParser
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

ROOT = Path(__file__).resolve().parent.parent
REF = re.compile(r'(?<![\w@./\\-])@((?:fig|eq|tbl|sec)-[\w-]+)')
CITE = re.compile(r'(?<![\w@./\\`])@([A-Za-z][\w:-]*\d{4}\w*)')
LINK = re.compile(r'(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(<?([^)\s>]+)>?(?:\s+"[^"]*")?\)(\{[^}]*\})?')
CODE = re.compile(r'^(```+|~~~+).*?^\1[ \t]*$', re.M | re.S)
SPAN = re.compile(r'(`+)(?!`)(.+?)(?<!`)\1(?!`)', re.S)
MATH = re.compile(r'\$\$.*?\$\$', re.S)


@dataclass
class Page:
    "A processed page: its text, the labels that can be referred to, and its figures"
    path: Path
    text: str = ''                                   # Markdown without code
    labels: list = field(default_factory=list)       # fig-…, eq-…, tbl-…, sec-…
    anchors: set = field(default_factory=set)        # Ids that a link can end in
    figures: list = field(default_factory=list)      # (label or '', has caption, has alt, has picture)
    output: str = ''                                 # Name of its HTML file


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
    opts = options(''.join(cell['source']))
    label = opts.get('label', '')
    if has_picture(cell) or label.startswith('fig-'):
        page.figures.append((label, 'fig-cap' in opts, 'fig-alt' in opts, has_picture(cell)))
    if label: page.labels.append(label)
    return '\n'.join(''.join(o['data']['text/markdown']) for o in cell.get('outputs', []) if 'text/markdown' in o.get('data', {}))


def read_page(path):
    "A processed notebook or .qmd as a `Page`"
    page = Page(path)
    if path.suffix == '.ipynb':
        nb, parts = json.loads(path.read_text(encoding='utf8')), []
        for cell in nb['cells']:
            source = ''.join(cell['source'])
            if cell['cell_type'] == 'code': parts.append(add_code_cell(page, cell))
            elif cell['cell_type'] == 'markdown': parts.append(source)
            else: page.output = front_matter(source).get('output-file', page.output)
        raw = '\n\n'.join(parts)
    else: raw = path.read_text(encoding='utf8')
    page.output = page.output or path.with_suffix('.html').name
    page.text = CODE.sub('', raw)
    page.labels += re.findall(r'\{#((?:fig|eq|tbl|sec)-[\w-]+)', page.text)
    page.anchors = anchors_of(page.text) | set(page.labels)
    return page


def check_blocks(page, report):
    "Fences of divs and code must close, and no directive may be left"
    for kind, opened in (('code fence', len(re.findall(r'^(?:```|~~~)', page.text, re.M))),
                         ('div', len(re.findall(r'^:{3,}\s*\{', page.text, re.M)) - len(re.findall(r'^:{3,}\s*$', page.text, re.M)))):
        report(kind + ' closed', opened == 0, page.path.name, 'opened and not closed, or closed and not opened')


def check_figures(page, report):
    for label, cap, alt, picture in page.figures:
        report('figure', picture and cap and alt, page.path.name,
               f'{label or "a picture"} lacks ' + ', '.join(k for k, ok in (('a stored picture', picture), ('fig-cap', cap), ('fig-alt', alt)) if not ok))
    for label, n in Counter(page.labels).items(): report('label', n == 1, page.path.name, f'{label} stands {n} times')


def check_references(page, keys, report):
    prose = SPAN.sub('', page.text)
    for ref in REF.findall(prose): report('cross-reference', ref in page.labels, page.path.name, f'@{ref} is not on this page')
    words = MATH.sub('', prose)
    for key in CITE.findall(words): report('citation', key in keys, page.path.name, f'@{key} is not in references.bib')
    return set(CITE.findall(words))


def local_target(url, page, site):
    "(file in the site, or None for one outside; anchor) of a link"
    if url.startswith(site): url = url[len(site):].lstrip('/') or 'index.html'
    u = urlsplit(url)
    if u.scheme or u.netloc: return None, ''
    return unquote(u.path) or page.path.name, unquote(u.fragment)


def check_links(page, pages, site, report):
    "Links inside the site must lead to a page, a file or a heading; links to elsewhere must be https"
    by_name = {p.path.name: p for p in pages} | {p.output: p for p in pages}
    text = MATH.sub('', SPAN.sub(lambda m: 'code', page.text))
    for bang, label, url, attrs in LINK.findall(text):
        name, anchor = local_target(url, page, site)
        if name is None:
            report('outside link', url.startswith(('https://', 'mailto:')), page.path.name, f'{url} is not https')
        elif bang:
            report('image', (page.path.parent/name).is_file() and bool(label.strip() or 'fig-alt' in (attrs or '')), page.path.name, f'{name} is missing or has no words for those who cannot see it')
        else:
            target = by_name.get(Path(name).name)
            ok = target is not None or (page.path.parent/name).is_file()
            report('link', ok, page.path.name, f'{url} leads nowhere')
            if ok and anchor and target is not None:   # nbdev links private names too, to the page that has them
                report('anchor', anchor in target.anchors or anchor.startswith('_'), page.path.name, f'{url}: no such heading on that page')


def entries(node):
    "Every page that a sidebar or navbar names"
    if isinstance(node, str): return [node] if re.search(r'\.(ipynb|qmd)$', node) else []
    if isinstance(node, list): return [e for o in node for e in entries(o)]
    if isinstance(node, dict): return [e for k, v in node.items() if k in ('contents', 'href', 'left', 'right') for e in entries(v)]
    return []


def check_sidebar(config, pages, report):
    names, sidebar = {p.path.name for p in pages}, entries(config['website']['sidebar'])
    for e in sidebar + entries(config['website'].get('navbar', {})): report('sidebar entry', e in names, '_quarto.yml', f'{e} is not a page')
    for n in names: report('page in sidebar', sidebar.count(n) == 1, '_quarto.yml', f'{n} stands {sidebar.count(n)} times in the sidebar')
    chapters = [e for e in sidebar if re.match(r'\d\d_', e) and not e.startswith('01_')]
    report('sidebar order', chapters == sorted(chapters), '_quarto.yml', 'chapters are not in the order of their numbers')


def imported(root):
    "Packages that the library imports, other than Python's own"
    trees = [ast.parse(p.read_text(encoding='utf8')) for p in (root/'kits_nb').glob('*.py')]
    nodes = [n for t in trees for n in ast.walk(t)]
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names} | {n.module for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}
    return {o.split('.')[0] for o in names} - set(sys.stdlib_module_names) - {'kits_nb'}


def check_requirements(root, report):
    "The dependencies page has a row for each requirement of settings.ini, and no other"
    parser = ConfigParser(delimiters=['='], interpolation=None)
    parser.read(root/'settings.ini', encoding='utf8')
    wanted = {re.split(r'[<>=!~;\[ ]', o.strip())[0] for k in parser['DEFAULT'] if k.endswith('requirements') for o in parser['DEFAULT'][k].split('\n') if o.strip()}
    page = root/'nbs/dependencies.qmd'
    rows = dict(re.findall(r'^\|\s*`([\w.-]+)`\s*\|[^|]*\|\s*([^|]*?)\s*\|', page.read_text(encoding='utf8'), re.M)) if page.exists() else {}
    for o in imported(root): report('import required', o in wanted, 'settings.ini', f'kits_nb imports {o}, which is not required')
    for o in wanted | set(rows):
        report('requirement explained', o in wanted and len(rows.get(o, '').split()) > 4, 'dependencies.qmd', f'{o}: ' + ('not in settings.ini' if o not in wanted else 'no reason given'))


def check_imports(path, report):
    """nbdev runs each cell that holds an import, and no other, to make the pages: such a cell must not need its neighbours.
    Exported cells may."""
    for cell in json.loads(path.read_text(encoding='utf8'))['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] != 'code' or re.search(r'^#\|\s*(exports?|exporti|eval:\s*false)\b', source, re.M): continue
        try: tree = ast.parse(re.sub(r'^\s*[%!].*$', 'pass', source, flags=re.M))
        except SyntaxError: continue
        imports = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
        if imports: report('import cell', len(imports) == len(tree.body), path.name, f'cell {cell.get("id")} holds imports and other code: give the imports a cell of their own')


def check_title(path, report):
    "nbdev makes the first cell the page's head, and drops whatever else stands in it"
    first = ''.join(json.loads(path.read_text(encoding='utf8'))['cells'][0]['source'])
    report('title', re.fullmatch(r'# [^\n]+\n\n> [^\n]+\n?', first) is not None, path.name, 'the first cell must be a title, an empty line and one line of summary after >, and no more')


def make_pages(root):
    "Process the notebooks for the site; the folder"
    from nbdev.config import get_config
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    import os
    os.chdir(root)
    refresh_quarto_yml()
    return proc_nbs(get_config().nbs_path, n_workers=2, force=True)


def main(root=ROOT):
    report = Report()
    for nb in sorted((root/'nbs').glob('*.ipynb')): check_title(nb, report); check_imports(nb, report)
    if report.broken: return report
    try: proc = make_pages(root)
    except Exception as e:   # the message names the notebook and the cell
        report('pages made', False, 'nbs', str(e))
        return report
    config = yaml.safe_load((proc/'_quarto.yml').read_text(encoding='utf8'))
    keys = re.findall(r'^@\w+\{\s*([^,\s]+)', (proc/config['bibliography']).read_text(encoding='utf8'), re.M)
    pages = [read_page(p) for p in sorted(proc.iterdir()) if p.suffix in ('.ipynb', '.qmd')]
    cited = set()
    for page in pages:
        report('page', len(page.text.split()) > 60, page.path.name, 'has fewer than 60 words')
        check_blocks(page, report); check_figures(page, report)
        check_links(page, pages, config['website']['site-url'], report)
        cited |= check_references(page, keys, report)
    for key in keys: report('bibliography entry', key in cited and keys.count(key) == 1, config['bibliography'], f'{key} is cited nowhere, or stands twice')
    check_sidebar(config, pages, report)
    check_requirements(root, report)
    return report


if __name__ == '__main__':
    result = main()
    for kind, n in result.counts.items(): print(f'{n:5}  {kind}')
    for line in result.broken: print('broken:', line)
    print(f'{sum(result.counts.values()) - len(result.broken)} passed, {len(result.broken)} failed')
    sys.exit(bool(result.broken))
