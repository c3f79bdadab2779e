// What the status page draws with: words, elements, lists, charts. It knows nothing of the mesh.
//
// Whatever is drawn goes in as text, never as markup: names are whatever somebody has submitted.

const ROWS = 25; // of a page of a list
export const CHART_MS = 600_000;
const SHORTEST_CHART_MS = 60_000;

export const BAD = ["failed", "timed_out", "dead_lettered"];
const TONES = {
  good: ["healthy", "succeeded"],
  busy: ["running", "leased"],
  warn: ["degraded", "draining", "cordoned", "absent", "released", "replaced", "expired", "cancelled"],
  bad: ["unhealthy", "crashed", "lost", ...BAD],
};

export const $ = (id) => document.getElementById(id);

// -- words

export const number = (value) => value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 2 : 0 });
export const words = (name) => name.replaceAll("_", " ");
export const tone = (name) => Object.keys(TONES).find((one) => TONES[one].includes(name)) ?? "idle";

export function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const s = ms / 1000;
  if (s < 60) return `${s < 10 ? Math.round(s * 10) / 10 : Math.round(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function clock(iso) {
  if (!iso) return "–";
  const at = new Date(iso);
  const day = at.toDateString() === new Date().toDateString() ? "" : `${iso.slice(0, 10)} `;
  return `${day}${at.toLocaleTimeString("en-GB")}.${String(at.getMilliseconds()).padStart(3, "0")}`;
}

// -- elements

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
export const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

export function write(element, text) {
  if (element.textContent !== text) element.textContent = text; // a screen reader hears what has changed only
}

export function pairs(list, rows) {
  list.replaceChildren(
    ...rows.map(([name, value, kind]) => make("div", kind ? { class: kind } : {}, make("dt", {}, name), make("dd", {}, value)))
  );
}

// -- lists: a cell is told as text, or as {text, tone, link, title}

export class List {
  constructor(id, { title, empty, columns, key }) {
    Object.assign(this, { empty, columns, key, rows: [], first: 0 });
    this.count = make("small");
    this.problem = make("p", { class: "problem", role: "alert" });
    this.note = make("p", { class: "empty" });
    this.body = make("tbody");
    const heads = columns.map(([name, , kind]) => make("th", { scope: "col", ...(kind && { class: kind }) }, name));
    this.table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), this.body);
    this.table.setAttribute("aria-labelledby", `${id}-title`);
    this.range = make("span");
    const turns = [["Previous", -ROWS], ["Next", ROWS]].map(([name, by]) => {
      const button = make("button", { type: "button" }, name);
      button.addEventListener("click", () => this.turn(by));
      return button;
    });
    this.pager = make("nav", { "aria-label": `Pages of ${title.toLowerCase()}` }, turns[0], this.range, turns[1]);
    const scroll = make("div", { class: "scroll" }, this.table);
    $(id).append(make("h2", { id: `${id}-title` }, `${title} `, this.count), this.problem, this.note, scroll, this.pager);
  }

  show(items) {
    write(this.problem, "");
    this.rows = items.map((item) => {
      const cells = this.columns.map(([, of]) => {
        const told = of(item);
        return typeof told === "object" ? told : { text: told };
      });
      return { key: this.key(item), cells, text: cells.map((one) => one.text).join(" ").toLowerCase() };
    });
    this.draw();
  }

  // Nothing is known yet, or it was refused with this sentence.
  clear(sentence = "") {
    this.show([]);
    write(this.note, sentence ? "" : "Loading");
    write(this.count, "");
    write(this.problem, sentence);
  }

  turn(by) {
    this.first += by;
    this.draw();
  }

  draw() {
    const wanted = $("filter").value.trim().toLowerCase();
    const found = wanted ? this.rows.filter((row) => row.text.includes(wanted)) : this.rows;
    this.first = Math.max(0, Math.min(this.first, Math.floor((found.length - 1) / ROWS) * ROWS));
    const shown = found.slice(this.first, this.first + ROWS);
    write(this.count, wanted ? `${number(found.length)} of ${number(this.rows.length)}` : number(this.rows.length));
    write(this.note, found.length ? "" : this.rows.length ? "None matches the filter." : this.empty);
    write(this.range, `${this.first + 1}–${this.first + shown.length} of ${number(found.length)}`);
    this.table.hidden = !found.length;
    this.pager.hidden = found.length <= ROWS;
    this.put(shown);
  }

  // Rows stay the elements that they are, so that whoever has moved to a link in one does not lose his place.
  put(shown) {
    const there = new Map([...this.body.rows].map((row) => [row.told, row]));
    const keys = new Set(shown.map((row) => row.key));
    for (const [key, row] of there) if (!keys.has(key)) row.remove();
    let at = this.body.firstElementChild;
    for (const { key, cells } of shown) {
      const row = there.get(key) ?? this.row(key);
      cells.forEach((cell, index) => this.cell(row.cells[index], cell));
      if (row === at) at = at.nextElementSibling;
      else this.body.insertBefore(row, at);
    }
  }

  row(key) {
    const row = make("tr", {}, ...this.columns.map(([, , kind]) => make("td", kind ? { class: kind } : {})));
    row.told = key;
    return row;
  }

  cell(element, { text, tone, link, title }) {
    if (!element.firstElementChild) element.append(make(link ? "a" : "span"));
    const inner = element.firstElementChild;
    write(inner, text);
    if (link) inner.setAttribute("href", link);
    if (tone) inner.className = `badge ${tone}`;
    if (title) inner.title = title;
  }
}

// -- charts

export class Chart {
  constructor(id, unit, names) {
    Object.assign(this, { box: $(id), unit, names });
    this.legend = names.map((name) => make("dd"));
    const keys = names.map((name, index) => make("div", { class: name }, make("dt", {}, name), this.legend[index]));
    this.svg = draw("svg", { role: "img", height: 150 });
    this.box.append(this.svg, make("dl", { class: "legend" }, ...keys));
  }

  // points: [{at, values: [number or null, for each name]}], the oldest first
  show(points, now) {
    const [width, height, left, top] = [this.box.clientWidth || 600, 150, 52, 8];
    const span = Math.max(SHORTEST_CHART_MS, now - (points[0]?.at ?? now));
    const bottom = height - 20;
    const most = Math.max(...points.flatMap((point) => point.values), 0);
    const high = nice(most);
    const x = (at) => width - 8 - ((now - at) / span) * (width - left - 8);
    const y = (value) => bottom - (value / high) * (bottom - top);
    const label = (x0, y0, text, anchor) => draw("text", { x: x0, y: y0, "text-anchor": anchor }, text);
    const grid = [0, high / 2, high].flatMap((value) => [
      draw("line", { class: "grid", x1: left, x2: width - 8, y1: y(value), y2: y(value) }),
      label(left - 6, y(value) + 4, this.unit(value), "end"),
    ]);
    const lines = this.names.flatMap((name, index) =>
      strokes(points.map(({ at, values }) => [at, values[index]])).map((stroke) =>
        draw("polyline", { class: name, points: stroke.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(" ") })
      )
    );
    this.svg.setAttribute("width", width);
    const ends = [label(left, height - 4, `${duration(span)} ago`, "start"), label(width - 8, height - 4, "now", "end")];
    this.svg.replaceChildren(...grid, ...ends, ...lines);
    const last = points.at(-1)?.values ?? [];
    const said = this.names.map((name, index) => (last[index] === null || last[index] === undefined ? "–" : this.unit(last[index])));
    this.legend.forEach((element, index) => write(element, said[index]));
    this.svg.setAttribute("aria-label", this.names.map((name, index) => `${name}: ${said[index]}`).join(", "));
  }
}

function nice(most) {
  if (!(most > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 5, 10].find((step) => step * power >= most) * power;
}

function strokes(points) {
  const found = [[]];
  for (const point of points) {
    if (point[1] === null) found.push([]);
    else found.at(-1).push(point);
  }
  return found.filter((stroke) => stroke.length).map((stroke) => (stroke.length > 1 ? stroke : [[stroke[0][0] - 2000, stroke[0][1]], ...stroke]));
}

export function bars(from, to, leased, started, over, how) {
  const x = (at) => (100 * Math.max(0, Math.min(at, to) - from)) / Math.max(1, to - from);
  const bar = (kind, a, b) => draw("rect", { class: kind, x: `${x(a)}%`, width: `${Math.max(0.5, x(b) - x(a))}%`, y: 3, height: 12 });
  const said = `delivered ${duration(leased - from)} after submission${started ? `, ran ${duration(over - started)}` : ""}`;
  return draw(
    "svg",
    { class: "bars", height: 18, width: "100%", role: "img", "aria-label": said },
    draw("title", {}, said),
    draw("line", { class: "grid", x1: 0, x2: "100%", y1: 9, y2: 9 }),
    bar("idle", leased, started ?? over),
    ...(started ? [bar(tone(how), started, over)] : [])
  );
}

