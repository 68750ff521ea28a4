#!/usr/bin/env python
"""Everything that must hold before a change lands: `python tools/check_all.py`, in a clean clone and a
virtual environment.

Installs and tests with the README's own command, then checks that bad inputs and faults end as they should,
that the chapters read like a book, that packages point one way, that exporting and cleaning change nothing,
that the README and the site are whole, and that a wheel runs the demonstration away from the source tree. The
last line says how many notebooks and checks passed and failed. Names of checks as arguments run those
alone."""
import os, re, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# nbdev-test starts notebooks in the order of their names, and a long one that starts last runs alone. So the
# command runs twice: for these, the first of which takes about as long as the others, then for all others.
FIRST = ['12_training', '32_export', '70_commands', '72_demo']


def run(command, cwd=ROOT, **env):
    "Run a shell command, show what it says as it comes; (exit code, output)"
    print(f'$ {command}', flush=True)
    env = os.environ | dict(PYTHONUNBUFFERED='1', PIP_QUIET='1') | env
    p = subprocess.Popen(command, shell=True, cwd=cwd, text=True, env=env,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines = []
    for line in p.stdout: lines.append(line); print(line, end='', flush=True)
    return p.wait(), ''.join(lines)


def readme_command(word, root=ROOT):
    "The README's command that contains `word`, as written"
    lines = (root/'README.md').read_text(encoding='utf8').splitlines()
    return next(o for o in lines if word in o and o.startswith('pip install'))


def all_notebooks(root=ROOT):
    "Every notebook that is tested, from nbs/"
    return sorted(p.relative_to(root/'nbs').as_posix() for p in (root/'nbs').rglob('[!_.]*.ipynb')
                  if not any(o[0] in '_.' for o in p.relative_to(root/'nbs').parts))


def count_notebooks(code, out, names):
    "(passed, failed): a notebook passed only if the run says that it ended, and does not list it as failed"
    ended = set(re.findall(r'^- Completed .*?/nbs/(\S+\.ipynb)', out, re.M))
    lists = re.findall(r'Tests Failed On The Following Notebooks:\n=+\n((?:\t.*\n?)+)', out)
    listed = {line.strip() for o in lists for line in o.splitlines()}    # names without their folders
    passed = {n for n in names if n in ended and n.rpartition('/')[2] not in listed}
    failed = len(names) - len(passed)
    for n in sorted(set(names) - passed): print('failed:', n)
    return len(passed), failed or int(code != 0)


def check_notebooks():
    "The README's second command; cells that want real data run too, where there are some"
    command, names = readme_command('nbdev-test'), all_notebooks()
    if os.environ.get('KITS_DATA'): command += ' --flags data'
    first = '^(' + '|'.join(FIRST) + ')'
    threads = dict(OMP_NUM_THREADS=os.environ.get('OMP_NUM_THREADS', '1'))   # a worker to each core: no more
    parts = [f"{command} --timing --file-re '{first}'", f"{command} --timing --skip-file-re '^[_.]|{first}'"]
    start, runs = time.time(), [run(o, **threads) for o in parts]
    out = '\n'.join(o for _, o in runs)
    slow = sorted(((int(t), n) for n, t in re.findall(r'^(\S+\.ipynb): (\d+) secs', out, re.M)), reverse=True)
    for t, n in slow:
        if t >= 60: print(f'note: {n} takes {t} s; a minute is right')
    total = sum(t for t, _ in slow)
    print(f'{len(names)} notebooks in {time.time() - start:.0f} s, {total} s of all workers')
    return count_notebooks(max(code for code, _ in runs), out, names)


def check_nights():
    "Runs that are really killed and started again, and a launch of eight processes: minutes, so flagged slow"
    code, out = run('nbdev-test nbs/engine/42_long_runs.ipynb --do-print --timing --flags slow')
    return count_notebooks(code, out, ['engine/42_long_runs.ipynb'])


def unchanged(command):
    "A command that must succeed and leave the source tree as it was"
    before = git_status()
    code, _ = run(command)
    changed = sorted(git_status() ^ before)
    if changed: print('changed:', *changed, sep='\n  ')
    return (1, 0) if code == 0 and not changed else (0, 1)


def git_status():
    "Lines of `git status`"
    out = subprocess.check_output(['git', 'status', '--porcelain'], cwd=ROOT, text=True)
    return set(out.splitlines())


def check_tools(): return unchanged('python tools/test_tools.py')
def check_trust(): return unchanged('python tools/check_trust.py')
def check_arrows(): return unchanged('python tools/check_arrows.py')
def check_book(): return unchanged('python tools/check_book.py')
def check_export(): return unchanged('nbdev-export')
def check_clean(): return unchanged('nbdev-clean')
def check_readme(): return unchanged('python tools/make_readme.py')
def check_site(): return unchanged('python -W ignore tools/check_site.py')
def check_gpu(): return unchanged('python bench/gpu.py --device cpu --tiny --out /dev/null')


def check_package(folder):
    "What is wrong with the sdist and the wheel in a folder: files, metadata, commands"
    import tarfile, zipfile
    from configparser import ConfigParser
    from email.parser import Parser
    [sdist], [wheel] = folder.glob('*.tar.gz'), folder.glob('*.whl')
    with tarfile.open(sdist) as t: there = {o.partition('/')[2] for o in t.getnames()}
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
        info = next(o for o in names if o.endswith('.dist-info/METADATA'))
        meta = Parser().parsestr(z.read(info).decode('utf8'))
        scripts = z.read(info.replace('METADATA', 'entry_points.txt')).decode('utf8')
    cfg = ConfigParser(delimiters=['='], interpolation=None)
    cfg.read(ROOT/'settings.ini', encoding='utf8')
    d, wrong = cfg['DEFAULT'], []
    for o in ('settings.ini', 'LICENSE', 'README.md', 'SECURITY.md', 'CITATION.cff', 'kits_nb/core.py'):
        if o not in there: wrong.append(f'the sdist lacks {o}')
    modules = {o.relative_to(ROOT).as_posix() for o in (ROOT/'kits_nb').rglob('*.py')}
    if lost := modules - set(names): wrong.append(f'the wheel lacks {sorted(lost)}')
    odd = [o for o in names if not o.startswith('kits_nb/') and '.dist-info/' not in o]
    if odd: wrong.append(f'the wheel holds {odd[:5]}')
    if (big := sum(o.stat().st_size for o in (sdist, wheel))) > 20e6: wrong.append(f'they have {big} bytes')
    for k, v in {'Name': d['lib_name'], 'Version': d['version'], 'Summary': d['description']}.items():
        if meta[k] != v: wrong.append(f'{k} is {meta[k]!r}')
    if meta['Description-Content-Type'] != 'text/markdown' or len(meta.get_payload()) < 1000:
        wrong.append('there is no description')
    needs = {re.split('[<>=!; ]', o)[0].lower() for o in meta.get_all('Requires-Dist')}
    for o in d['requirements'].split():
        if re.split('[<>=!]', o)[0].lower() not in needs: wrong.append(f'it does not require {o}')
    for o in d['console_scripts'].split():
        if o.replace('=', ' = ') not in scripts: wrong.append(f'there is no command {o}')
    return wrong


def check_wheel():
    "Sdist and wheel, as they should be; the wheel, unpacked elsewhere, runs both demonstrations"
    with tempfile.TemporaryDirectory() as d:
        code, _ = run(f'python -m build --outdir {d} .')       # the wheel is made from the sdist
        wrong = check_package(Path(d)) if code == 0 else ['they cannot be built']
        for o in wrong: print(f'sdist and wheel: {o}')
        if code: return 0, 1
        code, _ = run(f'pip install --no-deps --target {d}/away {d}/*.whl')
        where = "import kits_nb; assert '/away/' in kits_nb.__file__, kits_nb.__file__"
        demo = 'python away/bin/kits-demo --out'
        demo = f'{demo} first && {demo} demo --train --n 6 --epochs 1'
        code = code or run(f'python -c "{where}" && {demo}', cwd=d, PYTHONPATH=f'{d}/away')[0]
        made = [f'{o}/{f}' for o in ('first', 'demo') for f in ('report.html', 'predictions/scores.csv')]
        ran = code == 0 and all((Path(d)/o).exists() for o in (*made, 'demo/run/model.safetensors'))
        return int(ran) + int(not wrong), int(not ran) + int(bool(wrong))


CHECKS = dict(notebooks=check_notebooks, nights=check_nights, tools=check_tools, trust=check_trust,
              arrows=check_arrows, book=check_book, export=check_export, clean=check_clean,
              readme=check_readme, site=check_site, gpu=check_gpu, wheel=check_wheel)


def main(names):
    total = [0, 0]
    for name in names:
        print(f'--- {name}', flush=True)
        start = time.time()
        passed, failed = CHECKS[name]()
        print(f'--- {name}: {passed} passed, {failed} failed, {time.time() - start:.0f} s', flush=True)
        total = [total[0] + passed, total[1] + failed]
    print(f'{total[0]} passed, {total[1]} failed')
    return total[1] > 0 or total[0] == 0


if __name__ == '__main__': sys.exit(main(sys.argv[1:] or list(CHECKS)))
