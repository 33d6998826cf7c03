"use strict";
(() => {
  const {report, verdict, sentences, before: earlier, diff} = JSON.parse(document.getElementById("data").textContent);
  const $ = id => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const el = (name, attributes = {}, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "on") for (const [event, f] of Object.entries(value)) node.addEventListener(event, f);
      else if (value !== null && value !== undefined) node.setAttribute(key, value);
    }
    node.append(...children.filter(child => child !== null));
    return node;
  };
  const svg = (name, attributes = {}, text) => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  const bytes = n => {
    if (n === null || n === undefined) return "not known";
    const sign = n < 0 ? "−" : "";
    let value = Math.abs(n), unit = 0;
    while (value >= 1023.5 && unit < 5) { value /= 1024; unit++; }
    const digits = Number.isInteger(value) || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
    return `${sign}${value.toFixed(digits)} ${UNITS[unit]}`;
  };
  const change = n => n > 0 ? `+${bytes(n)}` : bytes(n);
  const count = n => n === null || n === undefined ? "not known" : n.toLocaleString("en");
  const time = ns => ns >= 1e9 ? `${(ns / 1e9).toPrecision(4)} s` : ns >= 1e6 ? `${(ns / 1e6).toPrecision(3)} ms` : `${(ns / 1e3).toPrecision(3)} µs`;
  const clear = node => { node.textContent = ""; return node; };
  const last = path => path.split("/").pop();

  // Which program, which time, which measure: the whole view, which the address of the page keeps.
  const view = {space: report.main_space, from: null, to: null, measure: "grown", find: "", step: null, hidden: []};
  const spaces = report.address_spaces;
  const readHash = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const key of ["space", "from", "to", "step"]) if (given.has(key)) view[key] = Number(given.get(key));
    if (["grown", "net", "shrunk"].includes(given.get("measure"))) view.measure = given.get("measure");
    if (given.has("find")) view.find = given.get("find");
  };
  const writeHash = () => {
    const kept = new URLSearchParams();
    for (const key of ["space", "from", "to", "measure", "find", "step"]) if (view[key] !== null && view[key] !== "") kept.set(key, view[key]);
    history.replaceState(null, "", `#${kept}`);
  };
  readHash();
  const space = () => spaces.find(s => s.id === view.space) || spaces[0];

  const stacks = new Map(report.stacks ? report.stacks.stacks.map(stack => [stack.id, stack]) : []);
  // Functions of a stack, innermost first.
  const framesCache = new Map();
  const frames = id => {
    if (id === null || id === undefined || !stacks.has(id)) return null;
    if (framesCache.has(id)) return framesCache.get(id);
    const stack = stacks.get(id), list = [];
    stack.frames.forEach((index, depth) => {
      const frame = report.stacks.frames[index];
      const module = frame.module === null ? null : report.stacks.modules[frame.module];
      const functions = frame.functions.length ? frame.functions : [{name: `${module ? last(module.path) : "?"}+${frame.offset}`, file: null, line: null}];
      functions.forEach((f, n) => list.push({
        name: f.name, file: f.file, line: f.line, module: module ? last(module.path) : frame.language,
        culprit: stack.culprit !== null && stack.culprit.depth === depth && stack.culprit.function === n,
      }));
    });
    framesCache.set(id, list);
    return list;
  };
  const place = f => `${f.name}${f.file ? ` (${last(f.file)}${f.line ? `:${f.line}` : ""})` : f.module ? ` (${f.module})` : ""}`;
  const by = id => { const list = frames(id); if (!list) return ""; const f = list.find(f => f.culprit) || list[0]; return f ? place(f) : ""; };

  // ---- over time
  const SERIES = [
    ["break", "program break", "break_bytes", "--break", "", "size of the heap below the program break"],
    ["mapped", "mapped", "anonymous_bytes", "--mapped", "7 3", "anonymous memory outside the break: large blocks, thread arenas"],
    ["resident", "resident", "resident_bytes", "--resident", "2 3", "memory that is in RAM, at snapshots"],
    ["used", "in use", "allocator_in_use_bytes", "--used", "1 2", "what the program has from its allocator and has not freed, at readings"],
    ["obtained", "obtained", "allocator_obtained_bytes", "--obtained", "9 2 2 2", "what the allocator has from the kernel, at readings"],
  ];
  const STEPPED = new Set(["break", "mapped"]);
  const extent = () => {
    const s = space();
    const end = s.ended_ns ?? report.end.duration_ns;
    return [s.started_ns, Math.max(end, s.started_ns + 1)];
  };
  const range = () => { const [a, b] = extent(); return [view.from ?? a, view.to ?? b]; };
  let zoom = null, cursor = null;
  const window_ = () => zoom || extent();
  const at = (points, t) => {
    let low = 0, high = points.length;
    while (low < high) { const mid = (low + high) >> 1; if (points[mid].time_ns <= t) low = mid + 1; else high = mid; }
    return low ? points[low - 1] : null;
  };
  const legend = () => {
    const box = clear($("legend"));
    for (const [key, name, field, colour, dash, meaning] of SERIES) {
      if (!space().timeline.points.some(p => p[field] !== null)) continue;
      const mark = svg("svg", {viewBox: "0 0 22 10"});
      mark.append(svg("line", {x1: 0, x2: 22, y1: 5, y2: 5, stroke: `var(${colour})`, "stroke-width": 2.5, "stroke-dasharray": dash}));
      box.append(el("button", {title: meaning, "aria-pressed": String(!view.hidden.includes(key)), on: {click: () => {
        view.hidden = view.hidden.includes(key) ? view.hidden.filter(k => k !== key) : [...view.hidden, key];
        legend(); chart();
      }}}, mark, name));
    }
  };
  const LEFT = 76, RIGHT = 12, TOP = 10, HEIGHT = 250, BOTTOM = 24;
  let width = 1000, scaleX = null;
  const niceStep = most => { let step = 1; while (most / step > 5) step *= 2; return step; };
  // The main program of the earlier recording, its times moved to where this one begins.
  const behind = () => {
    if (!earlier || view.space !== report.main_space) return null;
    const other = earlier.address_spaces.find(s => s.id === earlier.main_space);
    if (!other) return null;
    const shift = space().started_ns - other.started_ns;
    return other.timeline.points.map(p => ({...p, time_ns: p.time_ns + shift}));
  };
  const chart = () => {
    const box = clear($("chart"));
    width = Math.max(320, box.clientWidth || 1000);
    const points = space().timeline.points;
    const [t0, t1] = window_();
    const x = t => LEFT + (t - t0) / (t1 - t0) * (width - LEFT - RIGHT);
    scaleX = {x, t: px => t0 + (px - LEFT) / (width - LEFT - RIGHT) * (t1 - t0)};
    const shown = SERIES.filter(([key]) => !view.hidden.includes(key));
    const inside = points.filter(p => p.time_ns >= t0 && p.time_ns <= t1);
    const before = at(points, t0);
    let most = 1;
    for (const p of before ? [before, ...inside] : inside) for (const [key, , field] of shown) {
      const value = key === "break" ? p.break_max_bytes : key === "mapped" ? p.anonymous_max_bytes : p[field];
      if (value > most) most = value;
    }
    const past = behind();
    if (past) for (const p of past) for (const [key] of shown) {
      const value = key === "break" ? p.break_max_bytes : key === "mapped" ? p.anonymous_max_bytes : 0;
      if (value > most) most = value;
    }
    const y = v => TOP + (1 - v / most) * (HEIGHT - TOP - BOTTOM);
    const picture = svg("svg", {viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT});
    const step = niceStep(most);
    for (let v = 0; v <= most; v += step) {
      picture.append(svg("line", {class: "axis", x1: LEFT, x2: width - RIGHT, y1: y(v), y2: y(v)}));
      picture.append(svg("text", {class: "tick", x: LEFT - 8, y: y(v) + 4, "text-anchor": "end"}, bytes(v)));
    }
    for (let n = 0; n <= 6; n++) {
      const t = t0 + (t1 - t0) * n / 6;
      picture.append(svg("text", {class: "tick", x: x(t), y: HEIGHT - 6, "text-anchor": n === 0 ? "start" : n === 6 ? "end" : "middle"}, time(t)));
    }
    if (view.from !== null) {
      const [a, b] = [Math.max(x(view.from), LEFT), Math.min(x(view.to), width - RIGHT)];
      if (b > a) picture.append(svg("rect", {x: a, y: TOP, width: b - a, height: HEIGHT - TOP - BOTTOM, fill: "var(--sel)"}));
    }
    if (past && past.length) for (const [key, name, field, colour, dash] of shown) {
      if (!STEPPED.has(key)) continue;
      let path = "";
      for (const p of past) { const px = Math.min(Math.max(x(p.time_ns), LEFT), width - RIGHT); path += path ? `H${px}V${y(p[field])}` : `M${px} ${y(p[field])}`; }
      const line = svg("path", {d: path + `H${width - RIGHT}`, class: "past", fill: "none", stroke: `var(${colour})`, "stroke-width": 4, "stroke-opacity": .3});
      line.append(svg("title", {}, `${name}, before`));
      picture.append(line);
    }
    for (const [key, name, field, colour, dash] of shown) {
      const column = new Map();
      const put = (px, low, high, end) => { const c = column.get(px); if (!c) column.set(px, [low, high, end]); else { c[0] = Math.min(c[0], low); c[1] = Math.max(c[1], high); c[2] = end; } };
      let previous = before ? before[field] : null;
      let path = "", pen = null;
      if (STEPPED.has(key)) {
        // One stroke for each column of pixels, however many points there are.
        for (const p of inside) {
          const low = key === "break" ? p.break_min_bytes : p.anonymous_min_bytes, high = key === "break" ? p.break_max_bytes : p.anonymous_max_bytes;
          put(Math.round(x(p.time_ns)), low, high, p[field]);
        }
        let value = previous ?? (inside.length ? inside[0][field] : null);
        if (value !== null) {
          path = `M${Math.max(x(points.length ? points[0].time_ns : t0), LEFT)} ${y(value)}`;
          for (const [px, [low, high, end]] of [...column].sort((a, b) => a[0] - b[0])) {
            path += `H${px}V${y(high)}V${y(low)}V${y(end)}`;
          }
          path += `H${x(Math.min(t1, extent()[1]))}`;
        }
      } else {
        // Known now and then only: a line between what is known, and a mark at each reading.
        for (const p of before && before[field] !== null ? [before, ...inside] : inside) {
          if (p[field] === null) continue;
          const px = Math.max(LEFT, x(p.time_ns));
          path += `${pen === null ? "M" : "L"}${px} ${y(p[field])}`;
          pen = p[field];
          picture.append(svg("circle", {cx: px, cy: y(p[field]), r: 2.2, fill: `var(${colour})`}));
        }
      }
      if (path) picture.append(svg("path", {d: path, fill: "none", stroke: `var(${colour})`, "stroke-width": 1.8, "stroke-dasharray": dash, "stroke-linejoin": "round"}));
    }
    const line = svg("line", {class: "axis", y1: TOP, y2: HEIGHT - BOTTOM, x1: -9, x2: -9, id: "cursor"});
    picture.append(line);
    if (!points.length) picture.append(svg("text", {x: width / 2, y: HEIGHT / 2, "text-anchor": "middle"}, "nothing moved"));
    box.append(picture);
    box.dataset.ready = String(points.length);
    setCursor(cursor);
  };
  const setCursor = t => {
    cursor = t;
    const line = $("cursor");
    if (!line) return;
    if (t === null) { line.setAttribute("x1", -9); line.setAttribute("x2", -9); readout(null); return; }
    line.setAttribute("x1", scaleX.x(t)); line.setAttribute("x2", scaleX.x(t));
    readout(t);
  };
  const readout = t => {
    const points = space().timeline.points;
    const p = t === null ? null : at(points, t);
    $("readout").textContent = p === null ? "" : `${time(t)}: ` + SERIES.filter(([, , field]) => p[field] !== null).map(([, name, field]) => `${name} ${bytes(p[field])}`).join(" · ");
    map(t);
  };
  const limit = t => { const [a, b] = extent(); return Math.min(b, Math.max(a, t)); };
  const select = (a, b) => { view.from = a; view.to = b; chart(); steps(); who(); writeHash(); };
  const zoomTo = (a, b) => {
    const [x0, x1] = extent();
    if (b - a >= x1 - x0) zoom = null; else { const length = Math.max(b - a, 100); const start = Math.min(Math.max(a, x0), x1 - length); zoom = [start, start + length]; }
    chart();
  };
  const zoomBy = (factor, around) => { const [a, b] = window_(); zoomTo(around - (around - a) * factor, around + (b - around) * factor); };
  let drag = null;
  const box = $("chart");
  const px = event => { const r = box.getBoundingClientRect(); return (event.clientX - r.left) / r.width * width; };
  box.addEventListener("pointerdown", e => { drag = limit(scaleX.t(px(e))); box.setPointerCapture(e.pointerId); });
  box.addEventListener("pointermove", e => { const t = limit(scaleX.t(px(e))); if (drag !== null && Math.abs(scaleX.x(drag) - scaleX.x(t)) > 3) { view.from = Math.min(drag, t); view.to = Math.max(drag, t); chart(); } setCursor(t); });
  box.addEventListener("pointerup", e => { const t = limit(scaleX.t(px(e))); if (drag !== null && Math.abs(scaleX.x(drag) - scaleX.x(t)) > 3) select(Math.min(drag, t), Math.max(drag, t)); drag = null; });
  box.addEventListener("pointerleave", () => { if (drag === null) setCursor(null); });
  box.addEventListener("dblclick", () => { zoom = null; select(null, null); });
  box.addEventListener("wheel", e => { e.preventDefault(); zoomBy(e.deltaY > 0 ? 1.25 : 0.8, scaleX.t(px(e))); }, {passive: false});
  box.addEventListener("keydown", e => {
    const [a, b] = window_(), middle = cursor ?? (a + b) / 2;
    const moves = {"+": () => zoomBy(0.7, middle), "=": () => zoomBy(0.7, middle), "-": () => zoomBy(1.4, middle), "−": () => zoomBy(1.4, middle),
      ArrowLeft: () => zoom ? zoomTo(a - (b - a) / 8, b - (b - a) / 8) : setCursor(limit(middle - (b - a) / 100)),
      ArrowRight: () => zoom ? zoomTo(a + (b - a) / 8, b + (b - a) / 8) : setCursor(limit(middle + (b - a) / 100)),
      Enter: () => zoom && select(...zoom), Escape: () => { zoom = null; select(null, null); }};
    if (moves[e.key]) { e.preventDefault(); moves[e.key](); }
  });

  // ---- steps
  const allSteps = () => {
    const s = space();
    return [...s.break.steps.kept.map(step => ({...step, of: "break", why: (sentences[s.id] || {})[step.number]})),
      ...s.anonymous.steps.kept.map(step => ({...step, of: "mmap"}))].sort((a, b) => a.time_ns - b.time_ns);
  };
  const inRange = step => { const [a, b] = range(); return step.time_ns >= a && step.time_ns <= b; };
  let order = ["time_ns", 1], search = "";
  const COLUMNS = [["time_ns", "at", "n"], ["call", "call", ""], ["of", "of", ""], ["delta_bytes", "change", "n"], ["after_bytes", "then", "n"], ["tid", "thread", "n"], ["by", "by", "wide"]];
  const shownSteps = () => {
    const words = search.toLowerCase();
    const list = allSteps().filter(inRange).map(step => ({...step, by: by(step.stack)}));
    const found = words ? list.filter(s => `${s.by} ${s.call} ${s.of} ${s.why || ""}`.toLowerCase().includes(words)) : list;
    const [key, sign] = order;
    return found.sort((a, b) => (a[key] > b[key] ? 1 : a[key] < b[key] ? -1 : 0) * sign);
  };
  const steps = () => {
    const list = shownSteps(), table = clear($("steps"));
    const total = space().break.steps.total + space().anonymous.steps.total;
    const kept = space().break.steps.kept.length + space().anonymous.steps.kept.length;
    $("stepcount").textContent = `${count(list.length)} shown${kept < total ? `; the report keeps ${count(kept)} of ${count(total)}: the first, the last and the largest` : ""}`;
    const head = el("tr");
    for (const [key, title, kind] of COLUMNS) head.append(el("th", {class: kind, tabindex: 0, "aria-sort": order[0] === key ? (order[1] > 0 ? "ascending" : "descending") : null, on: {click: () => { order = [key, order[0] === key ? -order[1] : 1]; steps(); }, keydown: e => { if (e.key === "Enter") e.target.click(); }}}, title + (order[0] === key ? (order[1] > 0 ? " ▲" : " ▼") : "")));
    table.append(el("thead", {}, head));
    const body = el("tbody");
    for (const step of list.slice(0, 2000)) {
      const isOn = view.step === step.number && view.stepOf === step.of;
      body.append(el("tr", {tabindex: 0, class: isOn ? "on" : null, on: {click: () => show(step), keydown: e => { if (e.key === "Enter") show(step); }}},
        el("td", {class: "n"}, time(step.time_ns)), el("td", {}, step.call), el("td", {}, step.of),
        el("td", {class: `n ${step.delta_bytes > 0 ? "plus" : "minus"}`}, change(step.delta_bytes)), el("td", {class: "n"}, bytes(step.after_bytes)), el("td", {class: "n"}, String(step.tid)), el("td", {class: "wide"}, step.by)));
    }
    table.append(body);
    if (!list.length) body.append(el("tr", {}, el("td", {colspan: COLUMNS.length, class: "none"}, "no step")));
  };
  const show = step => {
    view.step = step.number; view.stepOf = step.of; writeHash(); steps(); setCursor(step.time_ns);
    const box = clear($("step")), list = frames(step.stack);
    box.append(el("strong", {}, `${step.call} at ${time(step.time_ns)}: ${change(step.delta_bytes)}, then ${bytes(step.after_bytes)}`));
    if (step.why) box.append(el("p", {class: "why"}, step.why));
    if (step.allocator) box.append(el("p", {class: "why"}, `the bundled allocator, because of: ${step.allocator.cause}`));
    if (list) box.append(el("ol", {}, ...list.map(f => el("li", {class: f.culprit ? "by" : null}, place(f)))));
    else box.append(el("p", {class: "none"}, "its call stack was not recorded"));
  };

  // ---- who asked for it
  const MEASURES = [["grown", "grown"], ["net", "still there"], ["shrunk", "gave back"]];
  let root = null, focus = null;
  const valueOf = growth => ({grown: growth.grown_bytes, net: growth.net_bytes, shrunk: growth.shrunk_bytes})[view.measure];
  const tree = () => {
    const top = {name: "all", value: 0, children: new Map(), depth: 0, parent: null};
    const add = (id, value) => {
      if (value <= 0) return;
      let node = top;
      top.value += value;
      const list = frames(id);
      for (const f of list ? [...list].reverse() : [{name: "(no stack)"}]) {
        const name = f.file ? `${f.name} (${last(f.file)})` : f.module ? `${f.name} (${f.module})` : f.name;
        if (!node.children.has(name)) node.children.set(name, {name, value: 0, children: new Map(), depth: node.depth + 1, parent: node});
        node = node.children.get(name);
        node.value += value;
      }
    };
    if (view.from === null) for (const growth of space().growth) { if (growth.stack !== null) add(growth.stack, valueOf(growth.break) + valueOf(growth.anonymous)); }
    else for (const step of allSteps().filter(inRange)) {
      const d = step.delta_bytes;
      add(step.stack, view.measure === "grown" ? Math.max(d, 0) : view.measure === "shrunk" ? Math.max(-d, 0) : Math.max(d, 0));
    }
    return top;
  };
  const hue = name => { let h = 0; for (const c of name) h = (h * 31 + c.codePointAt(0)) >>> 0; return h % 40; };
  const matches = name => view.find !== "" && name.toLowerCase().includes(view.find.toLowerCase());
  const flames = () => {
    const box = clear($("flames"));
    if (!root || root.value === 0) { box.append(el("p", {class: "none"}, view.from !== null ? "no step in the selected time has a call stack" : report.stacks ? "no call path did that" : "no call stacks were recorded (--stacks)")); $("matched").textContent = ""; return; }
    const top = focus || root, wide = Math.max(320, box.clientWidth || 1000), ROW = 20;
    const rows = [];
    const chain = [];
    for (let n = top.parent; n; n = n.parent) chain.unshift(n);
    chain.forEach((node, depth) => rows.push([node, 0, wide, depth]));
    let deepest = chain.length, matched = 0;
    const walk = (node, x, w, depth, isMatched) => {
      if (w < 0.6) return;
      rows.push([node, x, w, depth]);
      deepest = Math.max(deepest, depth);
      const hit = matches(node.name);
      if (hit && !isMatched) matched += node.value;
      let left = x;
      for (const child of [...node.children.values()].sort((a, b) => b.value - a.value)) {
        const part = w * child.value / node.value;
        walk(child, left, part, depth + 1, isMatched || hit);
        left += part;
      }
    };
    walk(top, 0, wide, chain.length, false);
    const picture = svg("svg", {viewBox: `0 0 ${wide} ${(deepest + 1) * ROW}`, height: (deepest + 1) * ROW});
    for (const [node, x, w, depth] of rows) {
      const rect = svg("rect", {class: "box", x, y: depth * ROW, width: w, height: ROW - 1, rx: 2, tabindex: -1, fill: matches(node.name) ? "var(--mark)" : `hsl(${18 + hue(node.name)} 72% ${document.documentElement.dataset.theme === "dark" ? 38 : 72}%)`});
      rect.append(svg("title", {}, `${node.name}\n${bytes(node.value)}, ${(node.value / root.value * 100).toFixed(1)} %`));
      rect.addEventListener("click", () => { focus = node === root ? null : node; flames(); });
      rect.addEventListener("pointerenter", () => { $("flametip").textContent = `${node.name}: ${bytes(node.value)}, ${(node.value / root.value * 100).toFixed(1)} %`; });
      picture.append(rect);
      if (w > 34) { const text = svg("text", {x: x + 5, y: depth * ROW + 14, "pointer-events": "none"}, node.name.length > (w - 8) / 6.3 ? `${node.name.slice(0, Math.max(1, Math.floor((w - 14) / 6.3)))}…` : node.name); picture.append(text); }
    }
    box.append(picture);
    $("matched").textContent = view.find ? `${bytes(matched)} of ${bytes(root.value)} (${(matched / root.value * 100).toFixed(1)} %) goes through it` : "";
  };
  const who = () => {
    const bar = clear($("measure"));
    for (const [key, name] of MEASURES) bar.append(el("button", {"aria-pressed": String(view.measure === key), on: {click: () => { view.measure = key; focus = null; who(); writeHash(); }}}, name), " ");
    root = tree(); focus = null;
    flames();
    const box = clear($("paths"));
    if (view.from !== null) return;
    const paths = space().call_paths.filter(p => p.path.length && valueOf(p.growth) > 0).sort((a, b) => valueOf(b.growth) - valueOf(a.growth)).filter(p => !view.find || p.path.some(matches)).slice(0, 12);
    if (!paths.length) return;
    const table = el("table", {}, el("thead", {}, el("tr", {}, ...[["grown", "n"], ["calls", "n"], ["gave back", "n"], ["still there", "n"], ["call path, innermost first", "wide"]].map(([t, c]) => el("th", {class: c}, t)))));
    table.append(el("tbody", {}, ...paths.map(p => el("tr", {}, el("td", {class: "n plus"}, bytes(p.growth.grown_bytes)), el("td", {class: "n"}, count(p.growth.grow_calls)), el("td", {class: "n minus"}, bytes(p.growth.shrunk_bytes)), el("td", {class: "n"}, bytes(p.growth.net_bytes)), el("td", {class: "wide"}, p.path.slice(0, 8).join(" ← ") + (p.path.length > 8 ? " ← …" : ""))))));
    box.append(el("div", {class: "scroll"}, table));
  };

  // ---- address space
  const KINDS = {text: ["program's code", "--sum"], data: ["initialized data", "--sum"], bss: ["zeroed data", "--sum"], heap: ["heap, up to the break", "--break"], gap: ["nothing is mapped", ""], files: ["libraries and files", "--obtained"], anonymous: ["anonymous memory", "--mapped"], shared: ["shared memory", "--used"], stack: ["main stack", "--resident"], kernel: ["the kernel's", "--faint"]};
  const map = t => {
    composition(t);
    const s = space(), box = clear($("map"));
    const p = t === null ? null : at(s.timeline.points, t);
    const shown = p ? at([...s.earlier_layouts, {time_ns: s.layout_ns ?? 0, segments: s.layout}], t) || s.earlier_layouts[0] || {time_ns: s.layout_ns, segments: s.layout} : {time_ns: s.layout_ns, segments: s.layout};
    const layout = shown.segments;
    $("mapwhen").textContent = p ? `as at the snapshot at ${time(shown.time_ns)}; the heap as at ${time(t)}` : "at the end, high addresses on top; the scale is logarithmic";
    if (!layout.length) { box.append(el("p", {class: "none"}, "no snapshot of it was taken")); return; }
    const sizes = layout.map(s => s.kind === "heap" && p ? p.break_bytes : s.bytes);
    const heights = layout.map((s, n) => s.kind === "gap" ? 26 : 16 + 5 * Math.log2(1 + sizes[n] / 4096));
    const all = heights.reduce((a, b) => a + b, 0), wide = 480;
    const picture = svg("svg", {viewBox: `0 0 ${wide} ${all + 6}`, height: all + 6});
    let y = 2;
    for (let n = layout.length - 1; n >= 0; n--) {
      const s = layout[n], [what, colour] = KINDS[s.kind] || [s.kind, "--sum"];
      if (s.kind === "gap") {
        picture.append(svg("line", {class: "axis", x1: 90, x2: 90, y1: y, y2: y + heights[n], "stroke-dasharray": "2 4"}));
        picture.append(svg("text", {class: "tick", x: 100, y: y + heights[n] / 2 + 4}, `gap of ${bytes(s.bytes)}`));
      } else {
        const rect = svg("rect", {x: 2, y, width: 176, height: heights[n] - 2, rx: 3, fill: `var(${colour})`, "fill-opacity": .28, stroke: `var(${colour})`});
        rect.append(svg("title", {}, `${s.start} to ${s.end}${s.name ? `\n${s.name}` : ""}`));
        picture.append(rect);
        picture.append(svg("text", {x: 186, y: y + heights[n] / 2 + 4}, `${what}${s.name && s.kind !== "files" ? `, ${last(s.name)}` : ""}: ${bytes(sizes[n])}${s.mappings > 1 ? ` in ${s.mappings} mappings` : ""}`));
      }
      y += heights[n];
    }
    box.append(picture);
  };

  // ---- allocator
  // What the readings before the cursor's time say: in use, and obtained but not in use.
  const composition = t => {
    const box = clear($("allocwhen"));
    if (t === null) return;
    const p = space().timeline.points.findLast(p => p.time_ns <= t && p.allocator_in_use_bytes !== null && p.allocator_obtained_bytes !== null);
    if (!p) return;
    const rest = Math.max(0, p.allocator_obtained_bytes - p.allocator_in_use_bytes);
    const bar = el("div", {class: "stack", role: "img", "aria-label": "composition at the cursor"});
    for (const [name, value, colour] of [["in use", p.allocator_in_use_bytes, "--used"], ["overhead and free", rest, "--mapped"]]) { const part = el("div", {title: `${name}: ${bytes(value)}`}); part.style.width = `${value / Math.max(1, p.allocator_obtained_bytes) * 100}%`; part.style.background = `var(${colour})`; bar.append(part); }
    box.append(el("p", {}, `at the reading at ${time(p.time_ns)}: ${bytes(p.allocator_in_use_bytes)} in use, ${bytes(rest)} overhead and free, of ${bytes(p.allocator_obtained_bytes)}`), bar);
  };
  const alloc = () => {
    const box = clear($("alloc")), allocator = space().allocator;
    if (!allocator || !allocator.last) {
      box.append(el("p", {class: "none"}, allocator && allocator.absence ? allocator.absence.message : "not visible: no figures of an allocator were read"));
    } else {
      const f = allocator.last.figures, parts = [["in use", f.in_use_bytes, "--used"], ["overhead", f.overhead_bytes, "--sum"], ["free, kept for later", f.free_bytes, "--mapped"], ["in thread caches (part of free)", f.cached_bytes, ""], ["top, not handed out yet", f.top_bytes, "--break"]];
      box.append(el("p", {}, `${allocator.name}, ${allocator.last.moment} at ${time(allocator.last.time_ns)}: ${bytes(f.obtained_bytes)} from the kernel`));
      const bar = el("div", {class: "stack", role: "img", "aria-label": "composition"});
      for (const [name, value, colour] of parts) if (value && colour && f.obtained_bytes) { const part = el("div", {title: `${name}: ${bytes(value)}`}); part.style.width = `${value / f.obtained_bytes * 100}%`; part.style.background = `var(${colour})`; bar.append(part); }
      box.append(bar);
      const list = el("dl");
      const row = (name, value, what = "") => list.append(el("dt", {}, name), el("dd", {}, value), el("dd", {class: "what"}, what));
      for (const [name, value] of parts) row(name, bytes(value), value !== null && f.obtained_bytes ? `${(value / f.obtained_bytes * 100).toFixed(1)} %` : "");
      row("blocks in use", count(f.live_blocks));
      row("blocks handed out", count(f.allocated_blocks));
      row("asked for in all", bytes(f.requested_bytes));
      row("peak in use", bytes(f.in_use_peak_bytes));
      box.append(list);
      if (allocator.heap_errors.total) box.append(el("p", {class: "warn"}, `${allocator.heap_errors.total} heap errors: ${allocator.heap_errors.by_kind.map(k => `${k.errors} × ${String(k.kind).replaceAll("_", " ")}`).join(", ")}`));
      for (const found of allocator.heap_errors.kept) {
        const e = found.error;
        box.append(el("details", {}, el("summary", {}, `${String(e.kind).replaceAll("_", " ")} at ${e.address}, ${time(found.time_ns)}`),
          ...[["found by", found.stack], ["freed by", found.freed_stack], ["allocated by", found.allocated_stack]].filter(([, id]) => frames(id)).map(([what, id]) => el("p", {}, `${what} ${frames(id).map(place).join(" ← ")}`))));
      }
    }
    classes(box);
  };
  // Chunks in use by size, from glibc's heap or the bundled allocator's small blocks.
  const classes = box => {
    const heap = space().heap && space().heap.heaps && space().heap.heaps[0];
    const list = heap ? heap.classes.map(c => [c.from_bytes === c.to_bytes ? bytes(c.from_bytes) : `${bytes(c.from_bytes)} to ${bytes(c.to_bytes)}`, c.bytes, c.chunks])
      : (space().allocator ? space().allocator.classes : []).map(c => [bytes(c.block_bytes ?? c.size_bytes), (c.live_blocks ?? 0) * (c.block_bytes ?? c.size_bytes ?? 0), c.live_blocks ?? 0]);
    const large = list.filter(c => c[1] > 0).sort((a, b) => b[1] - a[1]).slice(0, 12);
    if (!large.length) return;
    const most = large[0][1];
    box.append(el("h2", {}, "Sizes in use"));
    const table = el("table");
    for (const [name, size, blocks] of large) {
      const bar = el("div", {title: bytes(size)}); bar.style.cssText = `height:10px;border-radius:3px;background:var(--used);width:${Math.max(1, size / most * 100)}%`;
      table.append(el("tr", {}, el("td", {class: "n"}, name), el("td", {class: "wide"}, bar), el("td", {class: "n"}, `${bytes(size)}, ${count(blocks)}`)));
    }
    box.append(table);
  };

  // ---- the rest
  const outcome = o => o === null ? "still observed" : o === "detached" || o === "vanished" ? o : o.exited !== undefined ? `exited ${o.exited}` : `killed by signal ${o.killed.signal}`;
  const more = () => {
    const box = clear($("more"));
    const table = el("table", {}, el("thead", {}, el("tr", {}, ...[["process", "n"], ["program", "wide"], ["threads", "n"], ["ended", ""], ["break grew", "n"], ["mapped grew", "n"]].map(([t, c]) => el("th", {class: c}, t)))));
    const body = el("tbody");
    for (const process of report.processes.slice(0, 500)) {
      const own = spaces.filter(s => process.address_spaces.includes(s.id));
      const sum = f => own.reduce((a, s) => a + f(s), 0);
      body.append(el("tr", {tabindex: 0, on: {click: () => { const s = own[own.length - 1]; if (s) choose(s.id); }}}, el("td", {class: "n"}, String(process.pid)), el("td", {class: "wide"}, process.arguments.join(" ") || process.program), el("td", {class: "n"}, count(process.threads)), el("td", {}, outcome(process.outcome)), el("td", {class: "n"}, bytes(sum(s => s.break.grown_bytes))), el("td", {class: "n"}, bytes(sum(s => s.anonymous.grown_bytes)))));
    }
    table.append(body);
    box.append(el("div", {class: "scroll"}, table));
    for (const notice of report.notices) box.append(el("p", {class: "warn"}, notice.message));
    box.append(el("p", {class: "faint"}, `breaktrace ${report.tool.version}; ${count(report.end.events)} events on ${report.recording.machine.architecture}, Linux ${report.recording.machine.kernel}`));
  };
  const amount = (unit, n) => n === null ? "–" : unit === "bytes" ? bytes(n) : unit === "nanoseconds" ? time(n) : unit === "basis_points" ? `${n / 100} %` : count(n);
  const changed = () => {
    if (!diff) return;
    $("changed").hidden = false;
    const side = s => `${s.file ? `${last(s.file)}: ` : ""}${s.command.join(" ")} (${s.allocator === "system" ? "its own malloc" : s.allocator})`;
    $("sides").textContent = `before, drawn pale and wide: ${side(diff.before)} · after: ${side(diff.after)}${diff.differences.length ? ` · ${diff.differences.join("; ")}` : ""}`;
    const box = clear($("changes"));
    const metrics = diff.metrics.filter(m => m.before !== m.after && (m.repeatable || m.unit === "bytes"));
    if (!metrics.length) box.append(el("p", {class: "none"}, "no figure changed"));
    else box.append(el("div", {class: "scroll"}, el("table", {}, el("thead", {}, el("tr", {}, ...[["metric", ""], ["before", "n"], ["after", "n"], ["change", "n"], ["", "n"]].map(([t, c]) => el("th", {class: c}, t)))),
      el("tbody", {}, ...metrics.map(m => el("tr", {}, el("td", {}, (m.program ? `${m.program}:` : "") + m.metric + (m.repeatable ? "" : " (advisory)")), el("td", {class: "n"}, amount(m.unit, m.before)), el("td", {class: "n"}, amount(m.unit, m.after)),
        el("td", {class: `n ${m.delta > 0 ? "plus" : "minus"}`}, m.delta === null ? "" : (m.delta > 0 ? "+" : "") + (m.unit === "count" ? count(m.delta) : amount(m.unit, m.delta))), el("td", {class: "n"}, m.change === null ? "" : `${m.change > 0 ? "+" : "−"}${Math.abs(m.change * 100).toFixed(1)} %`)))))));
    if (diff.call_paths.length) box.append(el("h2", {}, "Call paths that changed"), el("div", {class: "scroll"}, el("table", {}, el("tbody", {}, ...diff.call_paths.map(p => el("tr", {}, el("td", {class: `n ${p.grown_delta > 0 ? "plus" : "minus"}`}, change(p.grown_delta)), el("td", {}, p.before === null ? "new" : p.after === null ? "gone" : `${p.before.grow_calls} → ${p.after.grow_calls} calls`), el("td", {class: "wide"}, p.path)))))));
    if (diff.steps.length) box.append(el("h2", {}, "Moves of the break that only one of them has"), el("div", {class: "scroll"}, el("table", {}, el("tbody", {}, ...diff.steps.map(s => el("tr", {}, el("td", {}, s.kind), el("td", {class: "n"}, `#${s.number}`), el("td", {class: `n ${s.delta_bytes > 0 ? "plus" : "minus"}`}, change(s.delta_bytes)), el("td", {class: "wide"}, s.path || "")))))));
  };
  const facts = () => {
    const s = space(), b = s.break, a = s.anonymous;
    $("verdict").textContent = s.id === report.main_space ? verdict : `${last(s.program)}: the break grew ${bytes(b.grown_bytes)} and gave back ${bytes(b.shrunk_bytes)}`;
    const top = s.call_paths.filter(p => p.path.length).sort((p, q) => q.growth.grown_bytes - p.growth.grown_bytes)[0];
    const all = b.grown_bytes + a.grown_bytes;
    $("because").textContent = top && all ? `${(top.growth.grown_bytes / all * 100).toFixed(0)} % of all growth (${bytes(top.growth.grown_bytes)} in ${count(top.growth.grow_calls)} calls) came from ${top.path.slice(0, 3).join(" ← ")}${top.path.length > 3 ? " ← …" : ""}; ${top.growth.net_bytes ? `${bytes(top.growth.net_bytes)} of it are still there at the end` : "all of it went back"}.` : "";
    $("facts").textContent = `${s.arguments.join(" ") || s.program} (pid ${s.pid}) · break: peak ${bytes(b.peak_bytes)}, at the end ${bytes(b.end_bytes)}, +${bytes(b.grown_bytes)} in ${count(b.grow_calls)} steps, −${bytes(b.shrunk_bytes)} in ${count(b.shrink_calls)} · mapped: peak ${bytes(a.peak_bytes)}, at the end ${bytes(a.end_bytes)}`;
  };
  const download = (name, type, text) => { const link = el("a", {href: URL.createObjectURL(new Blob([text], {type})), download: name}); link.click(); setTimeout(() => URL.revokeObjectURL(link.href), 1000); };
  const cell = value => { const text = String(value ?? ""); const safe = /^[=+\-@\t\r]/.test(text) && isNaN(text) ? `'${text}` : text; return /[",\n]/.test(safe) ? `"${safe.replaceAll("\"", "\"\"")}"` : safe; };
  $("csv").addEventListener("click", () => download("steps.csv", "text/csv", [["time_ns", "call", "of", "delta_bytes", "after_bytes", "tid", "by", "why"].join(","), ...shownSteps().map(s => [s.time_ns, s.call, s.of, s.delta_bytes, s.after_bytes, s.tid, s.by, s.why].map(cell).join(","))].join("\r\n") + "\r\n"));
  $("json").addEventListener("click", () => download("report.json", "application/json", JSON.stringify(report)));
  $("theme").addEventListener("click", () => { const root = document.documentElement; root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark"; flames(); });
  $("search").addEventListener("input", e => { search = e.target.value; steps(); });
  $("find").value = view.find;
  $("find").addEventListener("input", e => { view.find = e.target.value; who(); writeHash(); });
  $("unzoom").addEventListener("click", () => { focus = null; flames(); });
  const choose = id => { view.space = id; view.from = view.to = view.step = null; zoom = null; cursor = null; clear($("step")); $("space").value = String(id); all(); writeHash(); };
  for (const s of spaces) $("space").append(el("option", {value: s.id}, `${last(s.program)} (pid ${s.pid}${s.origin && s.origin.forked ? ", forked" : ""})`));
  $("space").addEventListener("change", e => choose(Number(e.target.value)));
  changed();
  const all = () => { facts(); legend(); chart(); who(); steps(); map(null); alloc(); more(); };
  document.documentElement.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  if (!spaces.length) { $("verdict").textContent = verdict || "nothing ran"; document.querySelector("main").append(el("p", {class: "none"}, "The recording holds no program.")); document.body.dataset.ready = "empty"; return; }
  if (!spaces.some(s => s.id === view.space)) view.space = report.main_space ?? spaces[0].id;
  $("space").value = String(view.space);
  all();
  let pending = null;
  addEventListener("resize", () => { clearTimeout(pending); pending = setTimeout(() => { chart(); flames(); }, 80); });
  document.body.dataset.ready = "yes";
})();
