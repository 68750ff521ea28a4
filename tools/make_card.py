#!/usr/bin/env python
"""Draw the site's favicon and the card that links to it show: `python tools/make_card.py`

Writes nbs/images/favicon.svg and card.png (1200 x 630): a drawing, not a result."""
from pathlib import Path

import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Ellipse, Polygon

IMAGES = Path(__file__).resolve().parent.parent/'nbs/images'
BLUE, KIDNEY, TUMOR = '#1b4f8a', '#56b4e9', '#e69f00'       # The navbar's blue; the book's colours of classes


def kidney(x, y, size, side):
    "Outline of a kidney (n,2), its hilum towards `side` (-1 left, 1 right)"
    t = np.linspace(0, 2*np.pi, 200)
    r = 1 - .42*np.exp(-(np.angle(np.exp(1j*t))/.55)**2)     # A dent where t is 0
    return np.stack([x + side*size*.72*r*np.cos(t), y + size*r*np.sin(t)], 1)


def draw_kidney(ax, x, y, size, side, tumor=False):
    shape = kidney(x, y, size, side)
    ax.add_patch(Polygon(shape, facecolor='#b8bec6', edgecolor=KIDNEY, linewidth=size*7))
    if tumor: ax.add_patch(Ellipse((x - side*size*.42, y + size*.42), size*.75, size*.75,
                                   facecolor='#8d949c', edgecolor=TUMOR, linewidth=size*7))


def blank(width, height, color):
    "An axes without frame, in units of a hundred pixels"
    fig = plt.figure(figsize=(width, height), facecolor=color)
    ax = fig.add_axes([0, 0, 1, 1])
    ax.set(xlim=(0, width), ylim=(0, height), aspect='equal')
    ax.axis('off')
    return fig, ax


def card():
    fig, ax = blank(12, 6.3, BLUE)
    ax.add_patch(Ellipse((8.9, 3.15), 5.6, 4.2, facecolor='#3a3f46', edgecolor='#d5dae0', linewidth=3))
    ax.add_patch(Ellipse((8.9, 2.1), .8, .75, facecolor='#e8ebee'))
    draw_kidney(ax, 7.35, 3, .95, 1, tumor=True)
    draw_kidney(ax, 10.45, 3, .95, -1)
    ax.text(.7, 4.35, 'kits_nb', color='white', fontsize=62, fontweight='bold', va='center')
    lines = ['Kidneys and kidney tumors in 3D,', 'with networks that learn edges.', 'A book that runs.']
    for k, line in enumerate(lines): ax.text(.72, 3.1 - .48*k, line, color='white', fontsize=20, va='center')
    return fig


def favicon():
    fig, ax = blank(.64, .64, BLUE)
    ax.set(xlim=(0, 2.4), ylim=(0, 2.4))
    shape = kidney(1.25, 1.2, .98, 1)
    ax.add_patch(Polygon(shape, facecolor='white', edgecolor=KIDNEY, linewidth=3))
    ax.add_patch(Ellipse((.85, 1.6), .72, .72, facecolor='white', edgecolor=TUMOR, linewidth=3))
    return fig


if __name__ == '__main__':
    plt.rcParams['svg.hashsalt'] = 'kits_nb'
    card().savefig(IMAGES/'card.png', dpi=100)
    favicon().savefig(IMAGES/'favicon.svg', metadata=dict(Date=None))
    for name in ('card.png', 'favicon.svg'): print(f'{name}: {(IMAGES/name).stat().st_size/1000:.1f} kB')
