"Everything about the package is said once, in settings.ini; this file hands it to setuptools."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='], interpolation=None)
parser.read(here/'settings.ini', encoding='utf8')
cfg = parser['DEFAULT']

def lines(key): return [o.strip() for o in cfg.get(key, '').splitlines() if o.strip()]

found = re.search(r'__version__ = [\'"](.+?)[\'"]', (here/'kits_nb/__init__.py').read_text(encoding='utf8'))
if not found or found[1] != cfg['version']:
    raise SystemExit(f"kits_nb/__init__.py says version {found and found[1]!r}, settings.ini says "
                     f"{cfg['version']!r}: write the same version in both.")

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], author=cfg['author'],
    keywords=cfg['keywords'].split(), license=cfg['license'], packages=find_packages(include=['kits_nb*']),
    package_data={'kits_nb': ['box/*']},
    python_requires=f">={cfg['min_python']}", install_requires=lines('requirements'),
    extras_require={o.removesuffix('_requirements'): lines(o) for o in cfg if o.endswith('_requirements')},
    entry_points={'console_scripts': lines('console_scripts'),
                  'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
    long_description=(here/'README.md').read_text(encoding='utf8'),
    long_description_content_type='text/markdown',
)
