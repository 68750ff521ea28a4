#!/usr/bin/env python
"""Everything that must hold before a change lands: `python tools/check_all.py`, in a clean clone and a virtual environment.

Installs and tests with the README's own command, then checks that exporting and cleaning change nothing, that the
README and the site are whole, and that a wheel runs the demonstration away from the source tree. The last line
says how many notebooks and checks passed and failed. Names of checks as arguments run those alone."""
import os, re, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(command, cwd=ROOT, **env):
    "Run a shell command, show what it says as it comes; (exit code, output)"
    print(f'$ {command}', flush=True)
    p = subprocess.Popen(command, shell=True, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         env=os.environ | dict(PYTHONUNBUFFERED='1', PIP_QUIET='1') | env)
    lines = []
    for line in p.stdout: lines.append(line); print(line, end='', flush=True)
    return p.wait(), ''.join(lines)


def readme_command(word):
    "The README's command that contains `word`, as written"
    return next(l for l in (ROOT/'README.md').read_text(encoding='utf8').splitlines() if word in l and l.startswith('pip install'))


def count_notebooks(code, out, names):
    "(passed, failed): a notebook passed only if the run says that it ended, and does not list it as failed"
    ended = set(re.findall(r'^- Completed .*?([^/\\\s]+\.ipynb)', out, re.M))
    listed = set(re.findall(r'^\s+(\S+\.ipynb)$', out.partition('Tests Failed On The Following Notebooks')[2], re.M))
    passed = {n for n in names if n in ended and n not in listed}
    failed = len(names) - len(passed)
    for n in sorted(set(names) - passed): print('failed:', n)
    return len(passed), failed or int(code != 0)


def check_notebooks():
    "The README's second command; cells that want real data run too, where there are some"
    flags = ' --flags data' if os.environ.get('KITS_DATA') else ''
    code, out = run(readme_command('nbdev-test') + flags)
    return count_notebooks(code, out, sorted(p.name for p in (ROOT/'nbs').glob('[!_.]*.ipynb')))


def check_nights():
    "Runs that are really killed and started again, and a launch of eight processes: minutes, so flagged slow"
    code, out = run('nbdev-test nbs/engine/42_long_runs.ipynb --do-print --timing --flags slow')
    return count_notebooks(code, out, ['engine/42_long_runs.ipynb'])


def unchanged(command):
    "A command that must succeed and leave the source tree as it was"
    before = subprocess.run(['git', 'status', '--porcelain'], cwd=ROOT, capture_output=True, text=True).stdout
    code, _ = run(command)
    after = subprocess.run(['git', 'status', '--porcelain'], cwd=ROOT, capture_output=True, text=True).stdout
    if changed := sorted(set(after.splitlines()) - set(before.splitlines())): print('changed:', *changed, sep='\n  ')
    return (1, 0) if code == 0 and before == after else (0, 1)


def check_export(): return unchanged('nbdev-export')
def check_clean(): return unchanged('nbdev-clean')
def check_readme(): return unchanged('python tools/make_readme.py')
def check_site(): return unchanged('python -W ignore tools/check_site.py')


def check_wheel():
    "The wheel, unpacked elsewhere, runs a small demonstration with the installed requirements"
    with tempfile.TemporaryDirectory() as d:
        code, _ = run(f'python -m build --wheel --outdir {d} . && pip install --no-deps --target {d}/away {d}/*.whl')
        if code: return 0, 1
        where = "import kits_nb; assert '/away/' in kits_nb.__file__, kits_nb.__file__"
        code, _ = run(f'python -c "{where}" && python away/bin/kits-demo --out demo --n 6 --epochs 1', cwd=d, PYTHONPATH=f'{d}/away')
        made = all((Path(d)/'demo'/o).exists() for o in ('report.html', 'predictions/scores.csv', 'run/model.safetensors'))
        return (1, 0) if code == 0 and made else (0, 1)


CHECKS = dict(notebooks=check_notebooks, nights=check_nights, export=check_export, clean=check_clean, readme=check_readme, site=check_site, wheel=check_wheel)


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
