"use strict";
// Draws the report from the JSON in the page. Everything from a run goes into the document as text, never as HTML.
(() => {
  const report = JSON.parse(document.getElementById("report").textContent);
  const root = document.documentElement, page = document.getElementById("page");
  const drawn = []; // what a change of theme draws again

  const expand = table => table.rows.map(row => {
    const one = {};
    table.columns.forEach((name, at) => { one[name] = row[at]; });
    for (const name of table.texts) one[name] = table.words[one[name]];
    return one;
  });

  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat().filter(child => child != null));
    return element;
  }

  function section(id, title, ...children) {
    const element = make("section", {id, "aria-labelledby": id + "-title"}, make("h2", {id: id + "-title"}, title), ...children);
    page.append(element);
    return element;
  }

  const note = text => make("p", {class: "note"}, text);

  function choice(words, options, chosen, change) {
    const select = make("select", {onchange: () => change(select.value)},
      options.map(([value, text]) => make("option", {value, selected: String(value) === String(chosen)}, text)));
    return make("label", {}, words + " ", select);
  }

  function plain(value, digits = 4) {
    if (value == null) return "–";
    if (typeof value !== "number") return String(value);
    if (Number.isInteger(value) && Math.abs(value) < 1e7) return String(value);
    const size = Math.abs(value);
    if (size >= 1e12) return +(value / 1e12).toPrecision(digits) + " T";
    if (size >= 1e9) return +(value / 1e9).toPrecision(digits) + " G";
    if (size >= 1e6) return +(value / 1e6).toPrecision(digits) + " M";
    if (size > 0 && size < 1e-3) return value.toExponential(2);
    return String(+value.toPrecision(digits));
  }

  // How often the unit in which a number of that size is told goes into the given one, and its name
  function unitFor(unit, size) {
    if (unit === "s" && size > 0 && size < 1) return size < 1e-3 ? [1e6, "µs"] : [1e3, "ms"];
    if (unit === "B" || unit === "B/s") {
      const at = Math.min(4, Math.max(0, Math.floor(Math.log10(size || 1) / 3)));
      return [10 ** (-3 * at), " kMGT"[at].trim() + unit];
    }
    return [1, unit];
  }

  /* Numbers with their unit, all in that of `like`: 0.42 ms, 3.9 to 4.7 ms */
  function told(values, unit, like = values[0], digits = 4) {
    if (values[0] == null) return "–";
    const [times, name] = unitFor(unit, Math.abs(like));
    return values.map(value => plain(value * times, digits)).join(" to ") + (name ? (name.startsWith("/") ? name : " " + name) : "");
  }

  function grid(columns, rows, caption) {
    const cell = (value, column) => make("td", {class: column.number ? "number" : column.words ? "words" : null},
      value instanceof Node ? value : column.number ? plain(value) : value == null ? "–" : String(value));
    return make("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": caption},
      make("table", {},
        make("thead", {}, make("tr", {}, columns.map(column => make("th", {scope: "col", class: column.number ? "number" : null}, column.title)))),
        make("tbody", {}, rows.map(row => make("tr", {}, columns.map((column, at) => cell(row[at], column)))))));
  }

  const text = title => ({title}), number = title => ({title, number: true}), words = title => ({title, words: true});

  // The theme

  const system = matchMedia("(prefers-color-scheme: dark)");
  function theme() { return root.dataset.theme; }
  function setTheme(name) {
    root.dataset.theme = name;
    for (const draw of drawn) draw();
  }
  system.addEventListener("change", event => setTheme(event.matches ? "dark" : "light"));
  root.dataset.theme = system.matches ? "dark" : "light";

  const colour = name => getComputedStyle(root).getPropertyValue("--" + name).trim();

  function config() {
    const soft = colour("soft"), line = colour("line"), font = getComputedStyle(document.body).fontFamily;
    const axis = {labelColor: soft, titleColor: soft, tickColor: line, domainColor: line, gridColor: line, titleFontWeight: 500,
      labelFont: font, titleFont: font};
    return {background: "transparent", font, view: {stroke: "transparent"}, axis,
      legend: {labelColor: colour("text"), titleColor: soft, labelFont: font, titleFont: font},
      range: {category: report.colours.labels}, text: {font}, rule: {color: colour("text")}};
  }

  function themed(spec, title) {
    return JSON.parse(JSON.stringify(spec, (key, value) => {
      if (typeof value !== "string" || !value.includes("$") || key === "$schema") return value;
      if (value === "$title") return title;
      return value.replace(/\$([a-z]+)/g, (_, name) => colour(name));
    }));
  }

  // Charts, one after the other, so that the page answers meanwhile

  const waiting = [];
  let drawing = null;
  async function drawAll() {
    while (waiting.length) {
      await waiting.shift()();
      await new Promise(resolve => setTimeout(resolve));
    }
    drawing = null;
    root.dataset.drawn = "true";
  }
  function draw(work) {
    root.dataset.drawn = "false";
    waiting.push(work);
    drawing ||= Promise.resolve().then(drawAll);
  }

  /* A chart in an element of its own; `data` gives its rows by name. The returned function draws it again. */
  function chart(place, name, data, {title = "", height = null, rows = 0, signals = {}, adapt = () => {}} = {}) {
    const holder = make("div", {class: "chart", role: "img", "aria-label": place.dataset.label || title});
    place.replaceChildren(holder);
    let view = null;
    const again = () => draw(async () => {
      if (!holder.isConnected) return;
      const spec = themed(report.charts[name], title);
      const mode = name === "timeline" ? "vega" : "vega-lite";
      if (mode === "vega") {
        spec.width = Math.max(400, holder.clientWidth - 12);
        spec.height = height;
      } else {
        spec.width = "container";
        spec.autosize = {type: "fit-x", contains: "padding"};
        spec.datasets = data();
        if (rows) spec.height *= rows;
        adapt(spec);
        for (const [key, value] of Object.entries(signals)) spec.params.find(one => one.name === key).value = value;
      }
      const made = await vegaEmbed(holder, spec, {mode, config: config(), actions: {export: true, source: false, compiled: false, editor: false},
        renderer: "canvas", tooltip: {theme: theme()}, downloadFileName: name});
      view?.finalize();
      view = made.view;
      if (mode === "vega") data(view);
    });
    drawn.push(again);
    again();
    return {again, view: () => view};
  }

  // The page

  const comparison = report.comparison;
  let shown = 0;

  function header(run) {
    const several = report.runs.length > 1;
    const instances = run.table.instances, ok = instances.filter(one => one.outcome === "ok").length;
    const hosts = new Set(instances.map(one => one.host));
    page.append(make("header", {},
      make("h1", {}, `${run.plan}:${run.case}`),
      make("span", {class: "badge " + (run.outcome === "ok" ? "is-ok" : "is-bad")}, (run.outcome === "ok" ? "✓ " : "✕ ") + run.outcome),
      make("span", {class: "soft"}, `run ${run.id}`),
      make("span", {class: "grow"}),
      several ? choice("Run shown", report.runs.map((one, at) => [at, one.id]), shown, value => { shown = +value; build(); }) : null,
      make("button", {type: "button", onclick: () => setTheme(theme() === "dark" ? "light" : "dark")}, "light / dark")));
    page.append(make("div", {class: "facts"},
      [["started", new Date(run.started_at * 1000).toISOString().replace("T", " ").slice(0, 19) + " UTC"],
       ["duration", plain(run.duration_s) + " s"],
       ["instances", `${ok} of ${instances.length} ok`],
       ["hosts", hosts.size], ["groups", new Set(instances.map(one => one.group)).size]]
        .map(([name, value]) => make("div", {}, make("span", {class: "soft"}, name), make("b", {}, String(value))))));
    if (run.cancelled) page.append(make("p", {class: "is-bad"}, `It was ended before its time: ${run.cancelled}`));
    if (run.doubts.length) page.append(make("div", {class: "doubts"},
      make("h2", {}, "Can it be believed?"), make("ul", {}, run.doubts.map(doubt => make("li", {}, doubt)))));
    for (const words of run.lacking) page.append(note(words));
  }

  function navigation() {
    const short = title => title.split(":")[0].replace(/ (of|between) hosts$/, "");
    const links = [...page.querySelectorAll("section")].map(one => make("a", {href: "#" + one.id}, short(one.querySelector("h2").textContent)));
    page.querySelector(".facts").after(make("nav", {"aria-label": "Views"}, links));
  }

  function failures(run) {
    const ended = new Map(run.table.steps.filter(one => one.name === "run").map(one => [run.table.instances[one.i], one.end]));
    const at = one => ended.get(one) ?? one.end; // what failed later often failed because of the first
    const failed = run.table.instances.filter(one => one.outcome !== "ok").sort((a, b) => at(a) - at(b));
    if (!failed.length) return;
    const alike = new Map();
    for (const one of failed) {
      const told = one.reason || `${one.outcome}, and no reason was told`;
      const reason = told.startsWith(one.host + ": ") ? told.slice(one.host.length + 2) : told; // the same on each host
      alike.set(reason, [...(alike.get(reason) || []), one]);
    }
    section("failures", "Failures", make("ul", {}, [...alike].slice(0, 50).map(([reason, those]) => {
      const hosts = new Set(those.map(one => one.host)).size;
      those.sort((a, b) => a.name.localeCompare(b.name, undefined, {numeric: true}));
      const names = those.slice(0, 20).map(one => one.name).join(", ") + (those.length > 20 ? `, and ${those.length - 20} more` : "");
      return make("li", {}, make("b", {class: "is-bad"}, those.length === 1 ? `✕ ${those[0].name} on ${those[0].host}: ` :
        `✕ ${those.length} instances on ${hosts} host${hosts > 1 ? "s" : ""}: `), reason,
        those.length > 1 ? make("div", {class: "note"}, names) : null);
    })), alike.size > 50 ? note(`${alike.size - 50} further reasons are in the table of instances.`) : null,
      ...run.table.barriers.filter(one => !one.met).slice(0, 3).map(one => note(`Barrier ${one.state}: ${one.came} of ${one.target} came` +
        (one.missing ? `; ${one.missing} did not.` : "."))));
  }

  // The timeline

  function timeline(run) {
    const instances = run.table.instances;
    const hidden = new Set();
    const filter = {host: "", group: "", outcome: "", words: ""};
    const whole = () => ({x0: 0, x1: Math.max(run.duration_s * 1.01, 0.001), y0: 0, y1: Math.max(1, rows.length)});
    let rows = [], zoom;
    const status = make("span", {class: "soft", role: "status"});
    const place = make("div", {class: "timeline", tabindex: 0, role: "application", "data-label": "Timeline of the instances",
      "aria-label": "Timeline. Arrow keys move, + and - zoom in time, Page Up and Page Down zoom in rows, 0 shows all."});

    function lay() {
      const lower = filter.words.toLowerCase();
      rows = instances.map((one, i) => ({...one, i})).filter(one =>
        (!filter.host || one.host === filter.host) && (!filter.group || one.group === filter.group) &&
        (!filter.outcome || one.outcome === filter.outcome) &&
        (!lower || `${one.name} ${one.host} ${one.reason}`.toLowerCase().includes(lower)));
      rows.forEach((one, pos) => { one.pos = pos; });
      status.textContent = rows.length === instances.length ? `${rows.length} instances` : `${rows.length} of ${instances.length} instances`;
    }

    function fill(view) {
      const at = new Map(rows.map(one => [one.i, one]));
      const of = (table, more) => table.filter(one => at.has(one.i)).map(one => ({...more?.(one), ...one, pos: at.get(one.i).pos,
        name: at.get(one.i).name, host: at.get(one.i).host, ...more?.(one)}));
      const bands = [];
      for (const one of rows) {
        const last = bands[bands.length - 1];
        if (last?.host === one.host) last.end = one.pos + 1;
        else bands.push({host: one.host, first: one.pos, end: one.pos + 1, odd: bands.length % 2 === 1});
      }
      view.data("rows", rows).data("bands", bands)
        .data("bars", of(run.table.steps.filter(one => !hidden.has(one.name)), one => ({step: one.name})))
        .data("stages", hidden.has("stages") ? [] : of(run.table.stages, one => ({stage: one.name})))
        .data("waits", hidden.has("waits") ? [] : of(run.table.waits))
        .data("arrivals", hidden.has("waits") ? [] : of(run.table.signals))
        .data("failures", rows.filter(one => one.outcome !== "ok"));
      move(zoom || whole());
    }

    function move(to) {
      const all = whole(), least = {x: all.x1 / 2000, y: Math.min(3, all.y1)};
      const clamp = (a, b, most, smallest) => {
        const size = Math.min(most, Math.max(smallest, b - a)), start = Math.min(Math.max(0, a), most - size);
        return [start, start + size];
      };
      const [x0, x1] = clamp(to.x0, to.x1, all.x1, least.x), [y0, y1] = clamp(to.y0, to.y1, all.y1, least.y);
      zoom = {x0, x1, y0, y1};
      const view = drawnTimeline.view();
      if (!view) return;
      for (const [name, value] of Object.entries(zoom)) view.signal(name, value);
      view.runAsync();
    }

    const scaled = (x, y, atX = 0.5, atY = 0.5) => {
      const {x0, x1, y0, y1} = zoom, midX = x0 + (x1 - x0) * atX, midY = y0 + (y1 - y0) * atY;
      move({x0: midX - (midX - x0) * x, x1: midX + (x1 - midX) * x, y0: midY - (midY - y0) * y, y1: midY + (y1 - midY) * y});
    };
    const shifted = (x, y) => {
      const dx = (zoom.x1 - zoom.x0) * x, dy = Math.sign(y) * Math.max(1, Math.abs((zoom.y1 - zoom.y0) * y));
      move({x0: zoom.x0 + dx, x1: zoom.x1 + dx, y0: zoom.y0 + dy, y1: zoom.y1 + dy});
    };
    const keys = {ArrowLeft: () => shifted(-0.2, 0), ArrowRight: () => shifted(0.2, 0), ArrowUp: () => shifted(0, -0.2),
      ArrowDown: () => shifted(0, 0.2), "+": () => scaled(0.5, 1), "=": () => scaled(0.5, 1), "-": () => scaled(2, 1),
      PageUp: () => scaled(1, 0.5), PageDown: () => scaled(1, 2), 0: () => move(whole()), Home: () => move(whole())};
    place.addEventListener("keydown", event => {
      if (keys[event.key] && !event.ctrlKey && !event.metaKey && !event.altKey) { event.preventDefault(); keys[event.key](); }
    });

    // Where in the plot a pointer is, 0 to 1 each way
    const LEFT = 190, BELOW = 40;
    function where(event) {
      const box = place.querySelector("canvas").getBoundingClientRect(), inset = 5;
      return [(event.clientX - box.left - inset - LEFT) / (box.width - 2 * inset - LEFT), (event.clientY - box.top - inset) / (box.height - 2 * inset - BELOW),
        event.clientX - place.getBoundingClientRect().left, event.clientY - place.getBoundingClientRect().top];
    }
    let start = null, frame = null;
    place.addEventListener("pointerdown", event => {
      if (event.button === 0 && event.target.tagName === "CANVAS" && event.pointerType !== "touch") start = where(event);
    });
    addEventListener("pointermove", event => {
      if (!start || !place.isConnected) return;
      const [, , x, y] = where(event), [, , x0, y0] = start;
      if (!frame && Math.hypot(x - x0, y - y0) < 5) return;
      frame ||= place.appendChild(make("div", {class: "drag"}));
      Object.assign(frame.style, {left: Math.min(x, x0) + "px", top: Math.min(y, y0) + "px", width: Math.abs(x - x0) + "px", height: Math.abs(y - y0) + "px"});
    });
    addEventListener("pointerup", event => {
      if (frame && start) {
        const [ax, ay] = start, [bx, by] = where(event), {x0, x1, y0, y1} = zoom;
        const span = (a, b, low, high) => [low + Math.min(a, b) * (high - low), low + Math.max(a, b) * (high - low)];
        const inTime = Math.abs(ax - bx) > 0.01, inRows = Math.abs(ay - by) > 0.05;
        const [left, right] = inTime ? span(ax, bx, x0, x1) : [x0, x1], [top, bottom] = inRows ? span(ay, by, y0, y1) : [y0, y1];
        move({x0: left, x1: right, y0: Math.floor(top), y1: Math.ceil(bottom)});
      }
      frame?.remove();
      start = frame = null;
    });
    place.addEventListener("dblclick", () => move(whole()));
    place.addEventListener("wheel", event => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      const [x, y] = where(event), by = event.deltaY > 0 ? 1.25 : 0.8;
      scaled(by, event.shiftKey ? by : 1, x, y);
    }, {passive: false});

    const distinct = name => [["", "all"], ...[...new Set(instances.map(one => one[name]))].map(value => [value, value])];
    const refilter = () => { lay(); zoom = null; const view = drawnTimeline.view(); if (view) { fill(view); } };
    const search = make("input", {type: "search", placeholder: "instance, host or reason", "aria-label": "Filter", oninput: () => { filter.words = search.value; refilter(); }});
    const legend = [...Object.entries(report.colours.steps), ...(run.table.stages.length ? [["stages", colour("stage")]] : []),
      ...(run.table.waits.some(one => one.i >= 0) ? [["waits", colour("wait")]] : [])].map(([name, shade]) => {
      const button = make("button", {type: "button", "aria-pressed": "true", onclick: () => {
        hidden.has(name) ? hidden.delete(name) : hidden.add(name);
        button.setAttribute("aria-pressed", String(!hidden.has(name)));
        refill();
      }}, make("span", {class: "swatch", style: `background:${shade}`}), name);
      return button;
    });
    const refill = () => { const view = drawnTimeline.view(); if (view) fill(view); };
    const button = (words, label, act) => make("button", {type: "button", "aria-label": label, onclick: act}, words);

    section("timeline", "Timeline",
      make("div", {class: "controls"},
        choice("Host", distinct("host"), "", value => { filter.host = value; refilter(); }),
        choice("Group", distinct("group"), "", value => { filter.group = value; refilter(); }),
        choice("Outcome", distinct("outcome"), "", value => { filter.outcome = value; refilter(); }), search, status,
        button("+", "Zoom in", () => scaled(0.5, 1)), button("−", "Zoom out", () => scaled(2, 1)),
        button("rows +", "Fewer rows, taller", () => scaled(1, 0.5)), button("rows −", "More rows", () => scaled(1, 2)),
        button("all", "Show all", () => move(whole()))),
      make("div", {class: "controls", role: "group", "aria-label": "What is shown"}, legend),
      place,
      note("A row for each instance, grouped by host. Drag to zoom, double-click for all, Ctrl and the wheel zoom at the pointer; " +
        "with the keyboard arrows, +, −, Page Up, Page Down and 0." +
        (run.table.stages.length ? "" : " The application told no stages (stage_start_event, stage_end_event).")));
    lay();
    zoom = whole();
    const drawnTimeline = chart(place, "timeline", fill, {height: Math.min(860, Math.max(120, instances.length * 15 + 45)), title: "Timeline of the instances"});
    window.reportZoom = () => ({...zoom}); // for tests and the console

    const list = make("details", {}, make("summary", {}, "All instances as a table"));
    list.addEventListener("toggle", () => {
      if (!list.open || list.children.length > 1) return;
      const steps = Object.keys(report.colours.steps), took = new Map(), rounded = seconds => seconds == null ? null : +seconds.toFixed(4);
      for (const one of run.table.steps) took.set(one.i + one.name, one.end - one.start);
      list.append(grid([text("instance"), text("host"), text("system"), ...steps.map(number), number("total, s"), text("outcome"), words("reason")],
        instances.map((one, i) => [one.name, one.host, one.system, ...steps.map(step => rounded(took.get(i + step))), rounded(one.end - one.start), one.outcome, one.reason]),
        "All instances"));
    });
    place.parentElement.append(list);
  }

  // Outcome and steps

  function outcomes(run) {
    const rows = run.table.outcomes, hosts = [...new Set(rows.map(one => one.host))], groups = [...new Set(rows.map(one => one.group))];
    const shades = report.colours.outcomes;
    function cell(those) {
      const all = those.reduce((sum, one) => sum + one.count, 0);
      if (!all) return "";
      const by = new Map();
      for (const one of those) by.set(one.outcome, (by.get(one.outcome) || 0) + one.count);
      return make("span", {}, make("span", {class: "share", "aria-hidden": "true"}, [...by].map(([outcome, count]) =>
        make("span", {style: `width:${100 * count / all}%;background:${shades[outcome] || shades.unknown}`}))),
        [...by].map(([outcome, count]) => `${count} ${outcome}`).join(", "));
    }
    const line = (name, those) => [name, ...groups.map(group => cell(those.filter(one => one.group === group))), ...(groups.length > 1 ? [cell(those)] : [])];
    const lines = hosts.map(host => line(host, rows.filter(one => one.host === host)));
    if (hosts.length > 1) lines.unshift(line("all hosts", rows));
    section("outcome", "Outcome", grid([text("host"), ...groups.map(text), ...(groups.length > 1 ? [text("all groups")] : [])], lines, "Outcome by host and group"));
  }

  function steps(run) {
    const rows = run.table.durations, hosts = new Set(rows.map(one => one.label));
    if (!rows.length) return section("steps", "Steps", note("No instance recorded its steps."));
    const place = make("div", {"data-label": "How long each step took"});
    const least = hosts.size > 8 ? [...hosts].slice(0, 8) : [...hosts];
    section("steps", "Steps", place, note("How long each step took: line from the least to the greatest, bar from the first to the third quartile, tick at the median" +
      (hosts.size > 8 ? "; the first 8 hosts." : ", by host.")));
    chart(place, "durations", () => ({durations: rows.filter(one => least.includes(one.label))}), {title: "Steps", rows: new Set(rows.map(one => one.step)).size * (least.length + 0.5)});
    return null;
  }

  // Barriers

  function barriers(run) {
    const rows = run.table.barriers;
    if (!rows.length) return section("barriers", "States and barriers", note("What the instances signalled and waited for is not recorded: " +
      "their sync service was not the run's own, or they used none."));
    const last = new Map(rows.filter(one => one.met).map(one => [one.state, one.last_s]));
    const place = make("div", {"data-label": "Arrivals at each state"});
    section("barriers", "States and barriers", place,
      note("Each tick is an instance's arrival (signal_entry) at a state; the last one, in red, is whom all others waited for. " +
        "Where a barrier was never met, none is red: whom they waited for did not come."),
      grid([text("state"), number("target"), number("arrived"), text("met"), text("did not come"), text("first"), number("at, s"), text("last"), number("at, s"), number("waited"), number("in sum, s"), number("longest, s")],
        rows.map(one => [one.state, one.target, one.came, one.met ? "yes" : "✕ never", one.missing || null, one.first || null, one.first_s, one.last || null, one.last_s, one.waiters, one.waited_s, one.longest_s]), "States and barriers"));
    chart(place, "arrivals", () => ({signals: run.table.signals.map(one => ({...one, is_last: one.at === last.get(one.state) ? 1 : 0}))}),
      {title: "Arrivals", rows: new Set(rows.map(one => one.state)).size, signals: {duration: run.duration_s}});
    return null;
  }

  // What was measured, over its distribution and over time

  function explorer(id, title, found, {empty, hint, ways = [["group", "by group"], ["host", "by host"]]}) {
    if (!found.series.length) return section(id, title, note(empty));
    const table = {boxes: expand(found.boxes), curves: expand(found.curves), dots: expand(found.dots), courses: expand(found.courses)};
    const label = ([source, name, kind, measure]) => `${name}${["value"].includes(measure) ? "" : " " + measure}` + (source === "samples" ? "" : ` (${kind}, ${source}.out)`);
    let m = 0, by = ways[0][0];
    const MOST = 40;
    const boxes = make("div", {"data-label": title + ": distribution"}), curve = make("div", {"data-label": title + ": cumulative"}),
      course = make("div", {"data-label": title + ": over time"}), words = note("");
    const controls = make("div", {class: "controls"},
      choice("Shown", found.series.map((one, at) => [at, label(one)]), 0, value => { m = +value; show(); }),
      ways.length > 1 ? choice("Split", ways, by, value => { by = value; show(); }) : null);
    section(id, title, controls,
      make("h3", {}, "Distribution"), make("div", {class: "halves"}, boxes, curve), words,
      make("h3", {}, "Over time"), course, note(hint));
    const parts = [];
    function show() {
      for (const part of parts.splice(0)) drawn.splice(drawn.indexOf(part), 1);
      const unit = found.series[m][4], name = label(found.series[m]).replace(/ \(.*/, "") + (unit ? ` (${unit})` : "");
      const mine = rows => rows.filter(one => one.m === m && (one.by === undefined || one.by === by));
      const all = mine(table.boxes).sort((a, b) => ways.length > 1 ? 0 : b.median - a.median), few = all.slice(0, MOST), kept = new Set(few.map(one => one.label));
      const dots = mine(table.dots).map(one => ({...one, label: one[by]})).filter(one => kept.has(one.label));
      const values = all.reduce((sum, one) => sum + one.n, 0);
      const each = ways.length > 1 ? "instances" : "hosts";
      words.textContent = `${plain(values)} values. Dots are ${found.extremes.includes(m) ? `the ${each} with the least and the greatest` : `single ${each}`} (the median of their values` +
        (["gauge", "point"].includes(found.series[m][2]) ? ")" : ", or their last summary)") + ". " +
        (all.length > MOST ? `The first ${MOST} of ${all.length} are shown. ` : "") +
        few.slice(0, 3).map(one => `${one.label}: median ${told([one.median], unit)}` +
          (one.low == null ? ` (${one.n} value${one.n > 1 ? "s" : ""}, too few for an interval)` : ` (95 %: ${told([one.low, one.high], unit, one.median)})`)).join("; ") +
        (few.length > 3 ? "; …" : ".");
      parts.push(chart(boxes, "box", () => ({boxes: few, dots}), {title: name, rows: Math.max(2, few.length)}).again);
      const curves = mine(table.curves), labels = [...new Set(curves.map(one => one.label))].slice(0, 12);
      parts.push(chart(curve, "curve", () => ({curves: curves.filter(one => labels.includes(one.label))}), {title: name}).again);
      parts.push(chart(course, "course", () => ({courses: mine(table.courses)}), {title: name}).again);
    }
    show();
    if (found.left_out) page.lastElementChild.append(note(`${found.left_out} further series are not in this page; they are in the outputs.`));
    return null;
  }

  // What is known of hosts and of the run

  const flat = (value, before = "") => value !== null && typeof value === "object" && !Array.isArray(value)
    ? Object.entries(value).flatMap(([key, inner]) => flat(inner, before ? `${before} ${key}` : key)) : [[before, value]];
  const shownValue = value => Array.isArray(value) ? value.map(one => typeof one === "object" ? JSON.stringify(one) : plain(one)).join(", ") : typeof value === "number" ? plain(value, 6) : value == null || value === "" ? "–" : String(value);

  /* A column for each host, a row for each thing that is known of one of them. */
  function besideEachOther(hosts, caption) {
    const rows = new Map();
    hosts.forEach((host, at) => flat(host).forEach(([key, value]) => {
      if (key === "name" || value == null || value === "" || Array.isArray(value) && !value.length) return;
      const unit = key.endsWith("_bytes") ? "B" : key.endsWith("_s") ? "s" : "";
      const name = key.replace(/^facts /, "").replace(/_(bytes|s)$/, "").replaceAll("_", " ").replace(/ p(\d+)$/, ", $1 %");
      if (!rows.has(name)) rows.set(name, hosts.map(() => undefined));
      rows.get(name)[at] = typeof value === "number" ? told([value], unit) : shownValue(value);
    }));
    return grid([text(""), ...hosts.map(host => text(host.name))], [...rows].map(([name, values]) => [name, ...values]), caption);
  }

  function truth(run) {
    const known = run.truth.filter(host => Object.keys(host).length > 2);
    section("truth", "Ground truth of hosts", known.length ? besideEachOther(known, "Ground truth of hosts")
      : note("Clock, round trips, load and memory of the hosts were not recorded for this run."));
  }

  function links(run) {
    const rows = run.table.links;
    if (!rows.length) return section("links", "Links between hosts", note("The ways between hosts were not measured; " +
      "ground_truth: {links: true} in inventory.yaml has that done behind each run of several hosts."));
    const ms = value => value == null ? "–" : plain(value * 1000, 3) + " ms", rate = value => value == null ? "–" : plain(value, 3) + "B/s";
    const shows = {median_s: ["round trip, median", ms], p90_s: ["round trip, nine tenths up to", ms], bytes_per_s: ["throughput, one second of sending", rate]};
    const hosts = [...new Set(rows.flatMap(one => [one.source, one.target]))], many = hosts.length > 16; // words would lie over each other
    const adapt = spec => {
      for (const channel of ["x", "y"]) spec.encoding[channel].scale.domain = hosts;
      spec.encoding.x.axis.labelAngle = many ? -90 : 0;
    };
    let key = "median_s";
    const place = make("div", {"data-label": "Links between hosts"});
    const show = () => {
      const shown = rows.map(one => ({...one, value: one[key], words: one.problem ? "✕" : many ? "" : shows[key][1](one[key]),
        trip: ms(one.median_s), slow: ms(one.p90_s), rate: rate(one.bytes_per_s)}));
      drawn.splice(0, drawn.length, ...drawn.filter(again => again !== last));
      last = chart(place, "links", () => ({links: shown}), {title: "Links", rows: hosts.length, adapt}).again;
    };
    let last = null;
    section("links", "Links between hosts",
      make("div", {class: "controls"}, choice("Shown", Object.entries(shows).map(([name, [title]]) => [name, title]), key, value => { key = value; show(); })),
      place, note("Measured behind the run, one way after the other: 20 exchanges over TCP, and one second of sending. ✕: it led nowhere."),
      grid([text("from"), text("to"), text("at"), number("round trip, ms: median"), number("nine tenths up to"), text("throughput"), words("problem")],
        [...rows].sort((a, b) => (b.problem !== "") - (a.problem !== "")).map(one => [one.source, one.target, one.address,
          one.median_s == null ? null : one.median_s * 1000, one.p90_s == null ? null : one.p90_s * 1000, rate(one.bytes_per_s), one.problem]), "Links between hosts"));
    show();
    return null;
  }

  function provenance(run) {
    const {provenance: {inventory, ...madeBy} = {}, ...inputs} = run.provenance, {hosts, ...settings} = inventory || {};
    const shown = {...inputs, ...(Object.keys(madeBy).length ? {provenance: madeBy} : {}), ...(Object.keys(settings).length ? {inventory: settings} : {})};
    const parts = Object.entries(shown).map(([name, value]) => {
      const lines = flat(value);
      if (Array.isArray(value) && value.length && value.every(one => one && typeof one === "object")) {
        const keys = [...new Set(value.flatMap(one => flat(one).map(([key]) => key)))];
        return make("div", {}, make("h3", {}, name), grid(keys.map(key => words(key.replaceAll("_", " "))),
          value.map(one => { const of = Object.fromEntries(flat(one)); return keys.map(key => shownValue(of[key])); }), name));
      }
      return make("div", {}, make("h3", {}, name), lines.length > 1 || lines[0]?.[0] ? make("table", {}, make("tbody", {}, lines.map(([key, one]) =>
        make("tr", {}, make("td", {class: "soft"}, key.replaceAll("_", " ")), make("td", {class: "words"}, shownValue(one)))))) : make("div", {}, shownValue(value)));
    });
    if (hosts) parts.push(make("div", {}, make("h3", {}, "inventory of hosts"), besideEachOther(Object.entries(hosts).map(([name, host]) => ({...host, name})), "Inventory of hosts")));
    section("provenance", "Provenance", parts.length ? make("details", {}, make("summary", {}, "Inputs, versions, artifacts, machine, inventory"), parts)
      : note("There is no run.json, so it is not known what this run was made of."), note(`Its files: ${run.directory}`));
  }

  // Several runs

  function compared() {
    if (!comparison) return;
    const {variants} = comparison, differs = [...new Set(variants.flatMap(one => Object.keys(one.differs)))];
    const differences = expand(comparison.differences), estimates = expand(comparison.estimates);
    const per = 100, rank = one => ["more than noise", "within noise"].indexOf(one.verdict) >>> 0;
    const name = one => one.what + (new Set(estimates.map(each => each.group)).size > 1 ? ` · ${one.group}` : "");
    const points = differences.filter(one => one.of && one.low != null).map(one => ({what: name(one), variant: one.variant, verdict: one.verdict,
      percent: per * one.size / Math.abs(one.of), low_percent: one.low == null ? null : per * one.low / Math.abs(one.of),
      high_percent: one.high == null ? null : per * one.high / Math.abs(one.of)}));
    points.sort((a, b) => (b.verdict === "more than noise") - (a.verdict === "more than noise") || Math.abs(b.percent) - Math.abs(a.percent));
    const more = differences.filter(one => one.verdict === "more than noise").length;
    const place = make("div", {class: "chart tall", "data-label": "Differences"});
    section("comparison", "Comparison", make("p", {}, comparison.how),
      grid([text("variant"), words("runs"), text("ok"), words("durations, s"), ...differs.map(words)],
        variants.map(one => [one.letter, one.runs.join(", "), `${one.ok} of ${one.instances}`, one.durations_s.map(each => plain(each)).join(", "), ...differs.map(key => one.differs[key] ?? "–")]), "Variants"),
      differences.length ? make("p", {}, make("b", {}, `${more} of ${differences.length} measures differ by more than noise.`)) : null,
      points.length ? place : null,
      grid([text("measure"), text("group"), ...variants.map(one => text(`${one.letter}: median (95 %)`)), ...variants.slice(1).map(one => text(`${one.letter} − A`)), ...variants.slice(1).map(one => text(`${one.letter}: that is`))],
        [...new Map([...differences].sort((a, b) => rank(a) - rank(b)).concat(estimates).map(one => [one.what + "\n" + one.group, one])).values()].map(first => {
          const mine = one => one.what === first.what && one.group === first.group;
          const by = Object.fromEntries(estimates.filter(mine).map(one => [one.variant, one])), delta = Object.fromEntries(differences.filter(mine).map(one => [one.variant, one]));
          return [first.what, first.group,
            ...variants.map(one => by[one.letter] ? told([by[one.letter].centre], first.unit) + (by[one.letter].low == null ? ` (${by[one.letter].n} value${by[one.letter].n > 1 ? "s" : ""})` : ` (${told([by[one.letter].low, by[one.letter].high], first.unit, by[one.letter].centre)})`) : null),
            ...variants.slice(1).map(one => { const d = delta[one.letter]; return d ? (d.size > 0 ? "+" : "") + told([d.size], first.unit) + (d.low == null ? "" : ` (${told([d.low, d.high], first.unit, d.size || d.high)})`) : null; }),
            ...variants.slice(1).map(one => { const d = delta[one.letter]; return d ? make("span", {class: d.verdict === "more than noise" ? "is-bad" : "is-soft"}, (d.verdict === "more than noise" ? "▲ " : "") + d.verdict) : null; })];
        }), "Medians and differences"));
    if (points.length) chart(place, "difference", () => ({differences: points.slice(0, 60)}), {title: "Differences",
      rows: Math.min(60, points.length)});
  }

  function build() {
    drawn.length = waiting.length = 0;
    page.replaceChildren();
    const run = report.runs[shown];
    run.table ||= Object.fromEntries(["instances", "steps", "stages", "outcomes", "durations", "barriers", "waits", "signals", "links"].map(name => [name, expand(run[name])]));
    header(run);
    compared();
    failures(run);
    timeline(run);
    outcomes(run);
    steps(run);
    barriers(run);
    explorer("metrics", "Metrics", run.metrics, {empty: "The instances wrote no metrics (results.out, diagnostics.out), or the run had them switched off.",
      hint: "Medians in each span of time; the coloured span holds the middle eight tenths. Timers are in seconds. Of more than 12 hosts those with the greatest medians."});
    explorer("usage", "Instances: CPU, memory, files", run.usage, {empty: "The instances' processes were not sampled, or the run was over before the first sample.",
      hint: "One sample a second of each instance's processes; counters are shown as what they grew by, per second."});
    explorer("hosts", "Hosts: CPU, memory, network", run.hosts, {ways: [["host", "by host"]], empty: "The hosts were not sampled in this run.",
      hint: "One sample a second. Of more than 12 hosts those with the greatest medians."});
    truth(run);
    links(run);
    provenance(run);
    navigation();
  }

  let resized = null;
  addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(() => { for (const again of drawn) again(); }, 200); });
  build();
})();
