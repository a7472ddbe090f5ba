"""Line plots as SVG, by the standard library alone: a series is a line with its name at its end, and a band from its lowest
to its highest sample."""

import math
from html import escape

WIDTH, HEIGHT = 880, 500
LEFT, RIGHT, TOP, BOTTOM = 84, 168, 104, 68
# Told apart by people who see few colours (Okabe and Ito).
COLOURS = {"virtio split": "#0072b2", "virtio split, indirect": "#56b4e9", "virtio packed": "#d55e00", "virtio packed, indirect": "#e69f00",
           "NVMe": "#009e73"}
INK, FAINT, GRID = "#222222", "#666666", "#e6e6e6"
FONT = "font-family=\"'Helvetica Neue',Helvetica,Arial,'DejaVu Sans',sans-serif\""
LABEL_GAP = 17
# Lines whose ends are this far apart have their names side by side.
NEAR = 100


def short(value):
    """A number as an axis shows it."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.3g}"


def colour_of(name):
    """The colour of the longest name that this one begins with."""
    return COLOURS.get(max((known for known in COLOURS if name.startswith(known)), key=len, default=None), INK)


class Axis:
    """From values to places, linear or logarithmic."""

    def __init__(self, low, high, start, end, log=False, ticks=None):
        self.log = log
        if log:
            low, high = max(low, 1e-12), max(high, low * 1.01, 1e-11)
        else:
            high = max(high, low + 1e-9)
        self.ticks = ticks or (self.log_ticks(low, high) if log else self.linear_ticks(low, high))
        if not ticks:
            low, high = min(low, self.ticks[0]), max(high, self.ticks[-1])
        self.low, self.high, self.start, self.end = low, high, start, end

    @staticmethod
    def linear_ticks(low, high):
        rough = (high - low) / 5
        power = 10 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
        first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
        return [step * number for number in range(first, last + 1)]

    @staticmethod
    def log_ticks(low, high):
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high) - 1e-9)
        steps = (1,) if last - first > 3 else (1, 2, 5)
        ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in steps]
        below = [tick for tick in ticks if tick <= low]
        above = [tick for tick in ticks if tick >= high]
        return [tick for tick in ticks if (below[-1] if below else low) <= tick <= (above[0] if above else high)]

    def at(self, value):
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        return self.start + (self.end - self.start) * (value - low) / (high - low)


def spread_labels(wanted):
    """Places for labels, in the order of the places they want, none on another."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    places = dict.fromkeys(order, 0.0)
    last = -math.inf
    for index in order:
        places[index] = last = max(wanted[index], last + LABEL_GAP)
    excess = last - (HEIGHT - BOTTOM)
    if excess > 0:
        for index in order:
            places[index] -= excess
    return [places[index] for index in range(len(wanted))]


def text(x, y, words, size=13, anchor="start", colour=INK, weight="normal", extra=""):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}" '
            f'font-weight="{weight}" {FONT} {extra}>{escape(words)}</text>')


def lines(path, *, title, subtitle, x, y, series, x_log=False, y_log=False, x_ticks=None, y_from=None, marks=()):
    """Writes a plot. `series` is a list of (name, [(x, middle, low, high)]); `marks` of (value, text) are level lines."""
    points = [point for _, found in series for point in found]
    bottom = min(point[2] for point in points) if y_log else 0
    bottom = bottom if y_from is None else y_from
    top = max([point[3] for point in points] + [value for value, _ in marks])
    across = Axis(min(p[0] for p in points), max(p[0] for p in points), LEFT, WIDTH - RIGHT, x_log, x_ticks)
    up = Axis(bottom, top, HEIGHT - BOTTOM, TOP, y_log)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">',
           f"<title>{escape(title)}</title>", f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
           text(LEFT - 60, 34, title, 19, weight="bold"), text(LEFT - 60, 57, subtitle, 13, colour=FAINT)]
    for tick in up.ticks:
        place = up.at(tick)
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}" stroke="{GRID}"/>')
        out.append(text(LEFT - 10, place + 4.5, short(tick), anchor="end", colour=FAINT))
    for tick in across.ticks:
        place = across.at(tick)
        out.append(f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 5}" stroke="{FAINT}"/>')
        words = str(tick) if isinstance(tick, int) else short(tick)
        out.append(text(place, HEIGHT - BOTTOM + 21, words, anchor="middle", colour=FAINT))
    out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}" stroke="{FAINT}"/>')
    out.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 18, x, anchor="middle"))
    out.append(text(LEFT - 60, TOP - 15, y, 12, colour=FAINT))
    for value, words in marks:
        place = up.at(value)
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}" stroke="{INK}" stroke-dasharray="5 5"/>')
        out.append(text(LEFT + 8, place - 6, words, 12, colour=INK))
    ends = [(0.0, 0.0)] * len(series)
    # Names stand where their lines end; those of lines that end near each other make room.
    across_ends = [across.at(found[-1][0]) for _, found in series]
    for column in {round(place / NEAR) for place in across_ends}:
        near = [index for index, place in enumerate(across_ends) if round(place / NEAR) == column]
        right = max(across_ends[index] for index in near)
        for index, label in zip(near, spread_labels([up.at(series[index][1][-1][1]) for index in near])):
            ends[index] = (right, label)
    seen = set()
    for (name, found), (right, label) in zip(series, ends):
        colour = colour_of(name)
        # The second line of a colour is dashed.
        dashes = ' stroke-dasharray="8 5"' if colour in seen else ""
        seen.add(colour)
        places = [(across.at(px), up.at(middle), up.at(low), up.at(high)) for px, middle, low, high in found]
        band = [f"{px:.1f},{high:.1f}" for px, _, _, high in places] + [f"{px:.1f},{low:.1f}" for px, _, low, _ in reversed(places)]
        out.append(f'<polygon points="{" ".join(band)}" fill="{colour}" fill-opacity="0.14"/>')
        line = " ".join(f"{px:.1f},{middle:.1f}" for px, middle, _, _ in places)
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.4" stroke-linejoin="round"{dashes}/>')
        out.extend(f'<circle cx="{px:.1f}" cy="{middle:.1f}" r="3.4" fill="{colour}"/>' for px, middle, _, _ in places)
        out.append(text(right + 12, label + 4.5, name, colour=colour, weight="bold"))
    out.append("</svg>")
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(out) + "\n")
