#!/usr/bin/env python
"""Test the checks themselves: `python tools/test_tools.py`

A small chapter that breaks no rule is broken once for each rule, and that rule, no other, must notice; so for
the arrows between packages and for the site's pages. The last line counts what passed and failed."""
import base64, contextlib, io, json, sys, tempfile
from pathlib import Path

import check_all, check_arrows, check_book, check_site, make_box, make_readme
from notebooks import read_book

failures, passes = [], 0


def same(what, got, wanted):
    global passes
    if got == wanted: passes += 1
    else: failures.append(f'{what}: {got!r}, not {wanted!r}')


# Notebooks

def md(source): return dict(cell_type='markdown', id='', metadata={}, source=source)


def code(source, *outputs):
    return dict(cell_type='code', id='', metadata={}, source=source, outputs=list(outputs))


def out(text, kind='text/plain'): return dict(output_type='execute_result', data={kind: text}, metadata={})
def stream(text, name='stdout'): return dict(output_type='stream', name=name, text=text)


PICTURE = base64.b64encode(b'x'*1000).decode()
SOLVED = '::: {.callout-tip collapse="true" title="Solutions"}\n1. Two.\n2. Four.\n:::'


def chapter():
    "A chapter that breaks no rule"
    cells = [md('# Blocks\n\n> What they do'), code('#| default_exp network.blocks'),
             code('from kits_nb.all import *\nimport torch'),
             md('## An idea\n\n' + 'plain words in a short sentence '*75),
             code('#| label: fig-x\nshow(x)', out(PICTURE, 'image/png'))]
    for k in range(8):
        cells += [md('What follows adds, as section 3.1 says.'), code(f'x = {k} + 1\nx', out(str(k + 1)))]
    cells += [code('#| exports\ndef f(x): return x'), md('## Checks')]
    cells += [code('assert f(1) == 1\nassert f(2) == 2\ntest_eq(f(3), 3)')]
    cells += [code(f'assert f({k}) == {k}') for k in range(4)]
    cells += [md('## Recap\n\nThree lines.'), md(f'## Exercises\n\n1. Add one.\n2. Add two.\n\n{SOLVED}')]
    return dict(cells=cells)


def broken(change, name='book/07_blocks', size=1000):
    "The rules that notice a change of the chapter"
    nb = chapter()
    change(nb['cells'])
    return sorted({v.rule for v in check_book.check(read_book(name, nb, size))})


def put(k, cell): return lambda cells: cells.insert(k, cell)


def replace(old, new):
    def change(cells):
        for c in cells: c['source'] = c['source'].replace(old, new)
    return change


def without_outputs(cells):
    for c in cells[6:]: c.pop('outputs', None)


def many_lines(cells):
    for c in cells:
        if 'x = ' in c['source']: c['source'] += '\nx = 1'*5


def test_book():
    same('a good chapter', broken(lambda cells: None), [])
    long = 'x = ' + '1 + '*27 + '1'
    for rule, change in {
        'words': lambda cells: cells.pop(3), 'cells': lambda cells: cells.extend([md('More.')]*50),
        'median': many_lines, 'long check': put(25, code('\n'.join(['assert f(1) == 1']*11))),
        'picture': lambda cells: cells.insert(20, cells.pop(4)), 'shown': without_outputs,
        'asserts': replace('assert f(', 'print(f('), 'recap': replace('## Recap', '## End'),
        'exercises': replace('2. Add two.', ''), 'solutions': replace('collapse="true"', ''),
        'first import': replace('from kits_nb.all import *\n', ''),
        'hidden import': put(8, code('#| hide\nfrom torch import nn')),
        'wide line': put(8, code(long, out('28'))),
        'long export': put(22, code('#| exports\n' + 'x = 1\n'*41)),
        'names in a cell': put(22, code('#| exports\ndef g(): return 1\ndef h(): return 1')),
        'stored error': put(8, code('x', dict(output_type='error', traceback=['a', 'b']))),
        'stored stderr': put(8, code('x', stream('hm', 'stderr'))),
        'stored widget': put(8, code('x', out({}, 'application/vnd.jupyter.widget-view+json'))),
        'escape code': put(8, code('x', stream('\x1b[2K'))),
        'progress bar': put(8, code('x', stream(' 12%|█'))),
        'path of a machine': put(8, code('x', stream('saved in /tmp/tmp4/one.csv'))),
        'warning': put(8, code('x', stream('FutureWarning: old'))),
        'raw reference': put(8, code('x = 1   # @eq-dice', out('1'))),
        'linked code': put(8, md('See [`train`](12_training.ipynb).')),
        'chapter number': put(8, md('As chapter 60 shows.')),
        'section': put(8, md('The paper, section 2.2, says so.')),
        'coined words': put(8, code('def f():\n    "Patients who never lived"', out('1'))),
    }.items(): same(rule, broken(change), [rule])
    for word in ('autograd.Function', 'x.to(memory_format=f)', 'is_compiling()', 'x.device.type'):
        same(word, broken(put(8, code(word, out('1')))), ['plain method'])
    same('a forbidden word in a comment', broken(put(8, code('x   # no Function\ny', out('1')))), [])
    same('another rule in the engine room', broken(put(8, code('memory_format')), 'engine/30_fast'), [])
    same('too large', broken(lambda cells: None, size=400_001), ['notebook size'])
    same('no first picture', broken(lambda cells: cells.pop(4)), ['picture'])
    same('no exercises', broken(replace('## Exercises', '## Tasks')), ['exercises'])
    found = noticed_words('chapters 3 and 4', '[chapter 12](a.ipynb)', 'the chapter on 3 losses')
    same('chapter numbers', found, ['"chapters 3": name and link it', '"chapter 12": name and link it'])
    same('sections that exist', noticed_words('sections 3.1 and 3.3, section 4'), [])
    same('a range of sections', noticed_words('sections 3.1 to 3.4'), ['the paper has no 3.4'])


def noticed_words(*lines): return [text for _, _, text in check_book.check_words(enumerate(lines))]


def test_measures():
    book = read_book('book/x', chapter())
    row = book.figures()
    same('row', {k: row[k] for k in ('cells', 'code', 'picture', 'median', 'longest', 'shown')},
         dict(cells=30, code=16, picture=5, median=2, longest=3, shown=100))
    same('asserts', row['asserts'], round(100*5/16))
    text = 'Two words, $x+1$ and `code` [a link](b.ipynb).\n\n```\nnot this\n```\n' + SOLVED
    one = read_book('book/x', dict(cells=[md(text)]))
    same('words of prose: no formula, address, block of code or solution', one.words, 7)
    same('words, of a formula as one', one.cells[0].prose.split()[:4], ['Two', 'words,', 'x', 'and'])
    heavy = code('x', out(base64.b64encode(b'x'*120_000).decode(), 'image/png'))
    same('heavy picture', check_book.heavy_pictures(read_book('book/x', dict(cells=[heavy]))),
         ['book/x[0]: a picture of 120 kB, 100 are plenty'])


def test_files():
    same('line of a tool', [v.rule for v in check_book.check_python('tools/a.py', 'x'*111)], ['wide line'])
    exported = '"Doc"\n\n# AUTOGENERATED! DO NOT EDIT!\n' + 'x'*111
    same('exported file', check_book.check_python('kits_nb/a.py', exported), [])
    found = check_book.check_python('bench/a.py', '# chapter' + ' 60')
    same('words of a bench', [v.place for v in found], ['bench/a.py line 1'])
    found = check_book.check_page('a.qmd', 'In chapter 6 [`x`](a.ipynb)')
    same('page', [v.rule for v in found], ['chapter number', 'linked code'])
    names = check_book.check_names({'a.py': 'def f(): 1\ndef _g(): 1', 'b.py': '\ndef f(): 2\ndef _g(): 2'})
    same('same name', [v.text for v in names], ['`f` stands also in b.py line 2'])


# Arrows

GOOD = {'core': '', 'data.volume': 'from ..core import *', 'show': 'from .data.volume import *',
        'network.model': 'from ..core import *', 'training.losses': 'from ..network.model import *',
        'inference.windows': 'import torch\nfrom ..network.model import *',
        'evaluation.scores': 'from ..inference.windows import *', 'demo': 'from .evaluation.scores import *',
        'cli': 'def f():\n    from kits_nb.demo import run', 'all': 'from .cli import *'}


def noticed(**changed):
    "Rules that notice changed modules, `data__kits19` for data.kits19"
    library = GOOD | {k.replace('__', '.'): v for k, v in changed.items()}
    return sorted({v.rule for v in check_arrows.check(library)})


def test_arrows():
    same('good arrows', noticed(), [])
    same('upward', noticed(data__kits19='from ..evaluation.scores import *'), ['upward import'])
    same('upward in a function', noticed(core='def f():\n    from kits_nb.data import volume'),
         ['cycle', 'upward import'])
    same('to inference', noticed(training__run='import kits_nb.inference.windows'), ['packages apart'])
    same('to training', noticed(inference__slabs='from ..training import losses'), ['packages apart'])
    same('network knows data', noticed(network__model='from ..data.volume import x'), ['packages apart'])
    same('unknown package', noticed(extra='from .core import *'), ['unknown package'])
    same('no such module', noticed(network__model='from .blocks import *'), ['no such module'])
    ring = noticed(network__model='from .fast import *', network__fast='def f():\n    from .model import *')
    same('cycle', ring, ['cycle'])
    circle = {'network.model': 'from .fast import *', 'network.fast': 'from .model import *'}
    found = check_arrows.arrows(GOOD | circle)
    same('the circle', check_arrows.cycles(found), [['network.fast', 'network.model']])
    library = dict(GOOD, core='def used(): 1\ndef idle(): 1\n', show='from .core import *\nused()')
    found = [i for i in check_arrows.arrows(library) if i.source == 'show']
    same('names needed', [check_arrows.needed(i, library) for i in found], [['used']])


# The site

def raw(source): return dict(cell_type='raw', id='', metadata={}, source=source)


CONFIG = """bibliography: references.bib
website:
  site-url: https://kits.org/kits
  favicon: icon.svg
  navbar: {left: [{text: Blocks, href: book/07_blocks.ipynb}]}
  sidebar: {contents: [index.qmd, {section: Book, contents: [book/07_blocks.ipynb, book/08_gate.ipynb]}]}
"""
LONG = 'Enough words for a page that is more than a heading. '*8


def site():
    "Files of a small processed site that is whole: {path: text, or the cells of a notebook}"
    doc = '### f\n\n```python\ndef f(\n    x:Path\n):\n```\n'
    blocks = [raw('---\noutput-file: blocks.html\n---'), md(LONG + '\n\n## A block\n\n$$x$$ {#eq-one}'),
              md('As @eq-one and @fig-x of [@he2016deep] show; see [the gate](08_gate.ipynb#a-gate).'),
              code('#| label: fig-x\n#| fig-cap: "X"\n#| fig-alt: "X"\nx', out(PICTURE, 'image/png')),
              code('#| echo: false\nshow_doc(f)', out(doc, 'text/markdown'))]
    links = '[f](https://kits.org/kits/book/blocks.html#f), [home](../index.qmd), ![a picture](../icon.svg)'
    gate = [raw('---\noutput-file: gate.html\n---'), md(f'{LONG}\n\n## A gate\n\n{links}')]
    return {'_quarto.yml': CONFIG, 'references.bib': '@article{he2016deep, title={}}', 'icon.svg': '<svg/>',
            'index.qmd': f'---\ntitle: Home\n---\n{LONG}\n[Blocks](book/07_blocks.ipynb)',
            'book/07_blocks.ipynb': blocks, 'book/08_gate.ipynb': gate}


def site_notices(path='index.qmd', old='', new='', **files):
    "The checks that notice a text replaced in a file of the site"
    made = site()
    for name, data in made.items():
        text = data if isinstance(data, str) else json.dumps(dict(cells=data))
        if name == path and old:
            assert old in text, old
            text = text.replace(old, new)
        made[name] = text
    report = check_site.Report()
    with tempfile.TemporaryDirectory() as d:
        for name, text in made.items():
            (Path(d)/name).parent.mkdir(exist_ok=True)
            (Path(d)/name).write_text(text, encoding='utf8')
        check_site.check_pages(Path(d), report)
    return sorted({o.split(': ')[1] for o in report.broken})


def test_site():
    same('a whole site', site_notices(), [])
    one, two = 'book/07_blocks.ipynb', 'book/08_gate.ipynb'
    for what, path, old, new, noticed_as in [
        ('a link by name alone', 'index.qmd', 'book/07_blocks.ipynb', '07_blocks.ipynb', ['link']),
        ('a link to the wrong folder', two, '../index.qmd', 'index.qmd', ['link']),
        ('a page of the site that is not there', two, 'book/blocks.html#f', 'blocks.html#f', ['link']),
        ('an anchor', one, '#a-gate', '#the-gate', ['anchor']),
        ('a private name', two, 'blocks.html#f', 'blocks.html#_f', ['anchor']),
        ('a linked code name', two, '[home]', '[[`f`](07_blocks.ipynb#f)]', ['words of a link']),
        ('http', two, '../index.qmd', 'http://kits.org', ['outside link']),
        ('a picture', two, '../icon.svg', 'icon.svg', ['image']),
        ('no alternative text', two, '![a picture]', '![]', ['image in words']),
        ('a reference', one, '@eq-one and', '@eq-two and', ['cross-reference']),
        ('a reference in code', one, '\\nx"', '\\nx  # @eq-one"', ['reference in code']),
        ('a citation', one, '@he2016deep', '@he2017deep', ['bibliography entry', 'citation']),
        ('no caption', one, '#| fig-cap: \\"X\\"', '', ['figure']),
        ('a type by a private path', one, 'x:Path', 'x:__main__.Path', ['signature']),
        ('a built-in as a type', one, 'x:Path', 'x:<built-in function callable>', ['signature']),
        ('no parameters', one, 'x:Path', '*args, **kwargs', ['signature']),
        ('a label twice', one, 'As @eq-one', '$$y$$ {#eq-one} As @eq-one', ['label']),
        ('a div', 'index.qmd', '[Blocks]', '::: {.callout-note}\n[Blocks]', ['div closed']),
        ('a page outside the sidebar', '_quarto.yml', 'contents: [book/07_blocks.ipynb, ', 'contents: [',
         ['page in sidebar']),
        ('no such page', '_quarto.yml', 'href: book/07', 'href: 07', ['sidebar entry']),
        ('the order', '_quarto.yml', '[book/07_blocks.ipynb, book/08_gate.ipynb]',
         '[book/08_gate.ipynb, book/07_blocks.ipynb]', ['sidebar order']),
        ('two pages with one address', two, 'gate.html', 'blocks.html', ['address', 'anchor']),
        ('no icon', '_quarto.yml', 'icon.svg', 'icon.png', ['site picture']),
    ]: same(what, site_notices(path, old, new), noticed_as)


def test_all():
    names = ['book/07_x.ipynb', 'engine/07_y.ipynb', 'index.ipynb', 'book/09_z.ipynb']
    ended = '\n'.join(f'- Completed /a/nbs/{o}' for o in names[:3])
    said = (ended + '\n\nnbdev Tests Failed On The Following Notebooks:\n====\n\tindex.ipynb\n')
    with contextlib.redirect_stdout(io.StringIO()):
        same('count', check_all.count_notebooks(1, said, names), (2, 2))
        same('two runs', check_all.count_notebooks(1, said + said.replace('index', '07_x'), names), (1, 3))
        same('a run that fails without a name', check_all.count_notebooks(1, ended, names[:3]), (3, 1))
        same('all is well', check_all.count_notebooks(0, ended, names[:3]), (3, 0))


def processed(folder, source):
    "What `short_pages` leaves of a function's signature and source: (Markdown, source)"
    from fastcore.nbio import dict2nb
    from kits_nb._pages import short_pages
    signature = 'def f(\n    x:__main__.Volume, # numpy.Any of it\n)->numpy.ndarray:'
    doc = f'### f\n\n```python\n{signature}\n```\n\n*Doc*'
    cells = [code('show_doc(f)', out(doc, 'text/markdown')), code(source)]
    nb = dict2nb(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5))
    nb.path_ = f'nbs/{folder}/07_x.ipynb'
    short_pages(nb).begin()
    return nb.cells[0].outputs[0].data['text/markdown'], nb.cells[1].source


def test_pages():
    source = '#| code-fold: show\n#| exports: true\ndef f(x): return x'
    short = '### f\n\n```python\ndef f(\n    x:Volume, # numpy.Any of it\n)->ndarray:\n```\n\n*Doc*'
    same('a signature in the book', processed('book', source), ('### f\n\n*Doc*', source))
    folded = source.replace('fold: show', 'fold: true')
    same('and in the engine room', processed('engine', source), (short, folded))
    same('and of hidden source', processed('book', 'f(1)'), (short, 'f(1)'))
    from kits_nb._pages import short_types
    same('nothing to say', short_types('```python\ndef f(\n    *args:Any, **kwargs:Any\n)->None:\n```\n'), '')
    same('defaults', short_types('def f(a:list=<factory>, b:x.B=<factory>):'), 'def f(a:list=[], b:B=…):')


def test_readme():
    link = lambda text: make_readme.relink(text, check_all.ROOT)
    url = make_readme.site_url(check_all.ROOT)
    same('page', link('[a](book/07_blocks.ipynb#b)'), f'[a]({url}/book/blocks.html#b)')
    same('qmd', link('[a](results.qmd)'), f'[a]({url}/results.html)')
    same('picture', link('![a](images/a.png){fig-alt="b"}'), '![a](nbs/images/a.png)')


def run_folder(folder, seed, init=''):
    "The records of a run, without its weights"
    folder.mkdir()
    facts = dict.fromkeys(('started', 'device', 'versions', 'cases', 'inputs'), 'x') | dict(commit='HEAD')
    facts |= dict(recipe=dict(train=dict(seed=seed, init=init)), command=['kits-train', str(folder)])
    (folder/'run.json').write_text(json.dumps(facts))
    (folder/'log.csv').write_text(f'epoch,loss,time\n1,0.{seed},00:01\n')
    return folder


def test_box():
    with tempfile.TemporaryDirectory() as d:
        first = run_folder(Path(d)/'first', 1)
        second = run_folder(Path(d)/'second', 2, str(first))
        third = make_box.facts_of(run_folder(Path(d)/'third', 3, str(second)))
        continued = make_box.facts_of(run_folder(Path(d)/'fourth', 4, 'box'))
    same('the runs that it started from, the first one first',
         [o['recipe']['train'] for o in third['before']], [dict(seed=1, init=''), dict(seed=2, init='first')])
    same('the last run', third['recipe']['train'], dict(seed=3, init='second'))
    same('its log', third['log'], [dict(epoch=1.0, loss=.3, time='00:01')])
    same('no place of a machine', d in json.dumps(third), False)
    package = make_box.package_facts('HEAD')
    same("after the package's own", len(continued['before']), len(package.get('before', [])) + 1)
    same('whose facts are the last', continued['before'][-1]['log'], package['log'])
    same('and hold no others', [o for o in continued['before'] if 'before' in o], [])


if __name__ == '__main__':
    for test in [o for name, o in list(globals().items()) if name.startswith('test_')]: test()
    for o in failures: print('failed:', o)
    print(f'{passes} passed, {len(failures)} failed')
    sys.exit(bool(failures))
