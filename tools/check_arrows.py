#!/usr/bin/env python
"""Check that the library's packages depend on each other in one direction: `python tools/check_arrows.py`

core; then data and show; then network; then training and inference, which do not know each other; then
evaluation; then demo, the commands and all. Prints how many modules of a package import which package, then
each violation with its place: an import from a higher package, between training and inference, of data in
network, or around in a circle. Imports inside functions count. The exit code is 1 if there are violations."""
import ast, sys
from collections import Counter, namedtuple
from pathlib import Path

from notebooks import public_defs

ROOT = Path(__file__).resolve().parent.parent
LEVELS = [['core'], ['data', 'show'], ['network'], ['training', 'inference'], ['evaluation'],
          ['demo'], ['cli'], ['all']]
RANK = {package: k for k, level in enumerate(LEVELS) for package in level}
APART = {('training', 'inference'), ('inference', 'training'), ('network', 'data')}
ALLOWED = {('network.export', 'data.volume')}    # the exported graph begins with HU; no file is touched

Import = namedtuple('Import', 'source target place names')          # Modules such as 'data.volume'
Violation = namedtuple('Violation', 'rule place text')


def package(module): return module.split('.')[0]


def imports_of(module, text, modules, place):
    "The imports from inside the library, at the top or in functions, of a module's source"
    for n in ast.walk(ast.parse(text)):
        if isinstance(n, ast.ImportFrom):
            above = ['kits_nb', *module.split('.')][:-n.level] if n.level else []
            base = '.'.join(above + ([n.module] if n.module else []))
            names = [a.name for a in n.names]
            whole = [f'{base}.{a}' for a in names]               # from kits_nb.data import volume
            found = [o for o in whole if o.removeprefix('kits_nb.') in modules] or [base]
        elif isinstance(n, ast.Import): found, names = [a.name for a in n.names], []
        else: continue
        for o in found:
            inside, _, target = o.partition('.')
            if inside == 'kits_nb' and target: yield Import(module, target, f'{place} line {n.lineno}', names)


def read_library(root=ROOT):
    "{module: source} of the library"
    files = [p for p in sorted((root/'kits_nb').rglob('*.py')) if not p.name.startswith('_')]
    name = lambda p: '.'.join(p.relative_to(root/'kits_nb').with_suffix('').parts)
    return {name(p): p.read_text(encoding='utf8') for p in files}


def arrows(library):
    "Every import between modules of the library"
    path = lambda m: 'kits_nb/' + m.replace('.', '/') + '.py'
    return [i for m, text in library.items() for i in imports_of(m, text, set(library), path(m))]


def check_directions(found):
    "Imports that point the wrong way"
    for i in found:
        a, b = package(i.source), package(i.target)
        what = f'{i.source} imports {i.target}'
        if a == b: continue
        if not {a, b} <= set(RANK): yield Violation('unknown package', i.place, f'{what}: add it to LEVELS')
        elif (i.source, i.target) in ALLOWED: continue
        elif (a, b) in APART: yield Violation('packages apart', i.place, f'{what}; {a} must not know {b}')
        elif RANK[b] > RANK[a]: yield Violation('upward import', i.place, f'{what}; {b} stands above {a}')


def check_targets(found, library):
    "Imports of modules that do not exist"
    for i in found:
        if i.target in library or any(m.startswith(i.target + '.') for m in library): continue
        yield Violation('no such module', i.place, f'{i.source} imports {i.target}')


def cycles(found):
    "The circles of imports between modules, each once, as lists of modules"
    graph, circles, state = {}, set(), {}
    for i in found: graph.setdefault(i.source, set()).add(i.target)
    def visit(m, path):
        state[m] = 'open'
        for o in sorted(graph.get(m, ())):
            if state.get(o) == 'open':
                ring = path[path.index(o):]
                k = ring.index(min(ring))
                circles.add((*ring[k:], *ring[:k]))
            elif o not in state: visit(o, [*path, o])
        state[m] = 'done'
    for m in sorted(graph):
        if m not in state: visit(m, [m])
    return [list(o) for o in sorted(circles)]


def check_cycles(found):
    places = {(i.source, i.target): i.place for i in found}
    for o in cycles(found): yield Violation('cycle', places[o[-1], o[0]], ' -> '.join([*o, o[0]]))


def public_names(text):
    "Names that `import *` brings from a module"
    tree = ast.parse(text)
    for n in tree.body:
        if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == '__all__':
            return set(ast.literal_eval(n.value))
    return {o.name for o in public_defs(tree)}


def used_names(text):
    "Names that a module's code reads"
    return {n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)}


def needed(imp, library):
    "The names that an import brings and the module uses"
    if imp.names != ['*'] or imp.target not in library: return imp.names
    return sorted(public_names(library[imp.target]) & used_names(library[imp.source]))


def check(library):
    found = arrows(library)
    return [*check_targets(found, library), *check_directions(found), *check_cycles(found)]


def table(found):
    "Rows of package, and how many of its imports go to which package"
    names = [p for level in LEVELS for p in level]
    counts = Counter((package(i.source), package(i.target)) for i in found)
    rows = [['from \\ to', *names[:-1]]]
    for a in names: rows.append([a, *(str(counts[a, b] or '.') for b in names[:-1])])
    return '\n'.join('  '.join(o.ljust(10) if k == 0 else o.rjust(10) for k, o in enumerate(r)) for r in rows)


def main(root=ROOT):
    library = read_library(root)
    found, broken = arrows(library), check(library)
    print(table(found))
    by_place = {i.place: i for i in found}
    for i in found:
        if i.names == ['*'] and i.source != 'all' and not needed(i, library):
            print(f'note: {i.place}: {i.source} uses nothing of {i.target}')
    for v in broken:
        names = needed(by_place[v.place], library) if v.place in by_place else []
        print(f'{v.place}: {v.rule}: {v.text}' + (f' (for {", ".join(names)})' if names else ''))
    print(f'{len(library)} modules, {len(found)} imports, {len(broken)} violations')
    return int(bool(broken))


if __name__ == '__main__': sys.exit(main())
