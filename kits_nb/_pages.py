"""Shorter pages: nbdev calls this when it makes the documentation (`doc_procs` in pyproject.toml).

A function's source follows its signature. In the book, where the source is the lesson, the signature goes,
since the source begins with it; in the engine room the source is folded."""
import re
from pathlib import Path
from nbdev.process import Processor

SIGNATURE = re.compile(r'```python\n(?:async )?def .*?\n```\n*', re.S)
EMPTY = re.compile(r'\(\s*\*args(?::Any)?, \*\*kwargs(?::Any)?\s*\)')


def short_types(signature):
    "A signature as its author wrote it: `Volume`, not `__main__.Volume`; nothing for one that tells nothing"
    if EMPTY.search(signature): return ''
    lines = []
    for line in signature.split('\n'):
        code, hash_, comment = line.partition(' # ')
        code = re.sub(r'\b(?:[A-Za-z_]\w*\.)+(?=[A-Z]\w*)|\bnumpy\.(?=ndarray\b)', '', code)
        code = code.replace('list=<factory>', 'list=[]').replace('dict=<factory>', 'dict={}')
        lines.append(code.replace('<factory>', '…') + hash_ + comment)
    return '\n'.join(lines)


def says(cell, pattern): return cell.cell_type == 'code' and bool(re.search(pattern, cell.source, re.M))


def change_output(cell, change):
    "Change the Markdown that `show_doc` made"
    for o in cell.get('outputs', []):
        data = o.get('data', {})
        if 'text/markdown' in data: data['text/markdown'] = change(''.join(data['text/markdown']))


class short_pages(Processor):
    "Signatures with short types, and no source beside its own signature"
    def begin(self):
        cells = [c for c in self.nb.cells if c.get('source')]
        in_book = Path(getattr(self.nb, 'path_', '')).parent.name == 'book'
        for doc, source in zip(cells, [*cells[1:], None]):
            if not says(doc, r'^show_doc\('): continue
            change_output(doc, lambda o: SIGNATURE.sub(lambda m: short_types(m[0]), o))
            if source is None or not says(source, r'^#\| exports\b'): continue
            if in_book: change_output(doc, lambda o: SIGNATURE.sub('', o))
            else: source.source = source.source.replace('#| code-fold: show', '#| code-fold: true')
