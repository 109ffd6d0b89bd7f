// The page's behaviour: sorting and filtering the table, and figures that follow it.
// Texts of rows reach the document as text only, and Vega as data only.
"use strict";
(() => {
  const { rows, columns, charts } = JSON.parse(document.getElementById("data").textContent);
  const MANY_ROWS = 300, MOST_RANKED = 40, MOST_NAMED = 8, MOST_LEGEND = 36, FRONT_NAMED = 12;
  const find = (selector, within = document) => within.querySelector(selector);
  const table = document.getElementById("rows");
  const body = table.tBodies[0];
  const lines = new Map([...body.rows].map((line) => [Number(line.dataset.row), line]));
  const words = new Map();
  const sizes = [...new Set(rows.map((row) => row.size))].sort((a, b) => a - b);
  const state = { column: null, down: false, picked: new Set(), hovered: null, order: rows };
  const views = new Map();

  // The table ------------------------------------------------------------------------------------------

  const collator = new Intl.Collator("en", { numeric: true });

  function compare(one, other) {
    const column = state.column;
    if (column === null) return one.row - other.row;
    if (!columns[column].number) {
      const [a, b] = [one, other].map((row) => lines.get(row.row).cells[column].textContent);
      return (state.down ? -1 : 1) * collator.compare(a, b) || one.row - other.row;
    }
    const a = one.keys[column], b = other.keys[column];
    if (a === null || b === null) return (a === null) - (b === null) || one.row - other.row;
    return (state.down ? b - a : a - b) || one.row - other.row;
  }

  function wordsOf(row) {
    if (!words.has(row)) words.set(row, lines.get(row).textContent.toLowerCase());
    return words.get(row);
  }

  // What the controls ask for, as a test of a row.
  function wanted() {
    const asked = find("#words").value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = [...document.querySelectorAll("select[data-filter]")].filter((choice) => choice.value);
    return (row) => asked.every((word) => wordsOf(row.row).includes(word)) &&
      chosen.every((choice) => row.chosen[choice.dataset.filter] === choice.value);
  }

  function sortBy(column) {
    if (state.column === column && state.down) Object.assign(state, { column: null, down: false });
    else Object.assign(state, { column, down: state.column === column });
    table.querySelectorAll("thead th").forEach((head, index) => {
      if (index === state.column) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    update();
  }

  function addSorting() {
    table.querySelectorAll("thead th").forEach((head, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sortBy(index));
      head.append(button);
    });
  }

  function addFilters() {
    const controls = document.getElementById("controls");
    controls.hidden = false;
    controls.addEventListener("input", update);
    find("#all-rows").addEventListener("click", () => {
      find("#words").value = "";
      controls.querySelectorAll("select").forEach((choice) => { choice.value = ""; });
      state.picked.clear();
      update();
    });
  }

  function update() {
    state.order = rows.filter(wanted()).sort(compare);
    const shown = new Set(state.order.map((row) => row.row));
    lines.forEach((line, row) => { line.hidden = !shown.has(row); });
    const ordered = [...state.order, ...rows.filter((row) => !shown.has(row.row))].map((row) => lines.get(row.row));
    if (ordered.some((line, index) => body.rows[index] !== line)) body.append(...ordered);
    find("#count").textContent = `${state.order.length} of ${rows.length} rows`;
    drawLegend();
    views.forEach(feed);
  }

  // What the figures draw --------------------------------------------------------------------------------

  function front(shown, name, up) {
    const ranked = (row) => name !== "throughput" || !row.disturbed;
    const known = shown.filter((row) => row.top1 !== null && row[name] !== null && ranked(row));
    const cost = (row) => (up ? -row[name] : row[name]);
    known.sort((a, b) => cost(a) - cost(b) || b.top1 - a.top1);
    const best = [];
    for (const row of known) {
      const last = best[best.length - 1];
      if (!last || row.top1 > last.top1 || (row.top1 === last.top1 && cost(row) === cost(last))) best.push(row);
    }
    return best;
  }

  const named = (row) => (sizes.length > 1 ? `${row.series} ${row.size}` : row.series);

  // The points whose names do not overlap those of points before them, roughly.
  function withRoom(points, name) {
    const place = find(".chart", find(`figure[data-chart="accuracy-${name}"]`));
    const drawn = state.order.filter((row) => row.top1 !== null && row[name] !== null);
    const across = drawn.map((row) => Math.log(row[name])), ends = drawn.flatMap((row) => [row.top1_low, row.top1_high]);
    const scale = (value, values, pixels) => (value - Math.min(...values)) / (Math.max(...values) - Math.min(...values) || 1) * pixels;
    const kept = [];
    for (const row of points) {
      const box = { row, x: scale(Math.log(row[name]), across, place.clientWidth - 80), y: scale(row.top1, ends, 280), half: 3.2 * named(row).length };
      if (kept.every((other) => Math.abs(box.x - other.x) > box.half + other.half || Math.abs(box.y - other.y) > 14)) kept.push(box);
    }
    return new Set(kept.map((box) => box.row));
  }

  const several = (count) => (count === 1 ? "1 row" : `${count} rows`);

  function accuracyRows(name) {
    const best = front(state.order, name, name === "throughput");
    const on = new Set(best);
    const labelled = withRoom(best.slice(-FRONT_NAMED).reverse(), name);
    const drawn = state.order.map((row) => ({
      ...row, [`front_${name}`]: on.has(row), [`front_${name}_words`]: labelled.has(row) ? named(row) : "",
    }));
    const known = drawn.filter((row) => row.top1 !== null && row[name] !== null).length;
    const listed = best.slice(0, FRONT_NAMED).map(named).join(", ");
    const more = best.length > FRONT_NAMED ? ` and ${best.length - FRONT_NAMED} more` : "";
    return [drawn, known ? `${several(known)}; on the front: ${listed}${more}.` : "No row shown has both values."];
  }

  function sizeRows(name) {
    const taken = new Map();
    const lost = state.order.filter((row) => row[name] === null);
    const few = lost.length <= MOST_NAMED;
    const drawn = state.order.map((row) => {
      if (row[name] !== null) return { ...row };
      const line = few ? "all" : row.size;
      const place = taken.get(line) || 0;
      taken.set(line, place + 1);
      return {
        ...row, [`lost_${name}`]: 8 + 15 * place, last_size: row.size > sizes[0] && row.size * 2 > sizes[sizes.length - 1],
        lost_words: few ? `${row.series}: ${row.status === "ok" ? "no value" : row.status}` : "",
      };
    });
    const known = drawn.filter((row) => row[name] !== null);
    if (!known.length) return [drawn, "No row shown has a value.", 1];
    const largest = Math.max(...known.map((row) => row.size));
    const there = known.filter((row) => row.size === largest).sort((a, b) => a[name] - b[name]);
    const ends = there.length > 1 ? `lowest ${there[0].series}, highest ${there[there.length - 1].series}` : there[0].series;
    return [drawn, `${several(known.length)}; at ${largest} px: ${ends}.`, topOf(known, name, Math.max(0, ...taken.values()))];
  }

  // The upper end of a logarithmic axis of 320 px that has lines of crosses above its values.
  function topOf(known, name, crosses) {
    const ends = known.flatMap((row) => [row[name], row[`${name}_low`] ?? row[name], row[`${name}_high`] ?? row[name]]);
    const low = Math.min(...ends), high = Math.max(...ends), room = crosses ? Math.min(160, 15 * crosses) : 0;
    return high * Math.max(high / low, 1.1) ** (room / (260 - room));
  }

  function rankedRows() {
    const column = state.column !== null && columns[state.column].number ? state.column : defaultColumn;
    const { title, factor } = columns[column];
    const drawn = state.order.slice(0, MOST_RANKED).map((row, index) => {
      const value = row.keys[column] === null ? null : row.keys[column] / factor;
      const [low, high] = (row.ends[column] || [null, null]).map((end) => end === null ? null : end / factor);
      const cell = lines.get(row.row).cells[column].firstChild;
      const text = value === null ? row.status : cell.textContent;
      return { ...row, rank: index, name: `${index + 1}. ${named(row)}`, value, low, high, edge: Math.max(value || 0, high || 0), words: text };
    });
    const left = state.order.length - drawn.length;
    const more = left ? ` The first ${MOST_RANKED}; ${left} more are in the table.` : "";
    return [drawn, `Shown: ${title}.${more}`];
  }

  const wantedColumns = ["latency", "img/s"];
  const defaultColumn = Math.max(
    ...wantedColumns.map((name) => columns.findIndex((column) => column.title.startsWith(name))),
    columns.findIndex((column) => column.number),
  );

  function dataOf(name) {
    if (name === "ranked") return rankedRows();
    const [kind, cost] = name.startsWith("accuracy-") ? ["accuracy", name.slice(9)] : ["size", name.slice(0, -5)];
    return kind === "accuracy" ? accuracyRows(cost) : sizeRows(cost);
  }

  // Figures ----------------------------------------------------------------------------------------------

  function feed(view, name) {
    const [drawn, said, top] = dataOf(name);
    find(".says", find(`figure[data-chart="${name}"]`)).textContent = said;
    view.description(`${charts[name].description} ${said}`);
    if (top) view.signal("top", top);
    return view.data("rows", drawn).signal("picked", pickedNow()).runAsync();
  }

  function draw(name) {
    const place = find(".chart", find(`figure[data-chart="${name}"]`));
    place.hidden = false;
    const compiled = vegaLite.compile(charts[name], { logger: vega.logger(vega.Error) }).spec;
    const view = new vega.View(vega.parse(compiled, null, { ast: true }), {
      expr: vega.expressionInterpreter, renderer: "svg", container: place, hover: false,
      loader: { load: refuse, sanitize: refuse }, logLevel: vega.Error,
    });
    view.tooltip((_, event, item) => tell(event, item));
    view.addEventListener("pointerover", (_, item) => hover(item));
    view.addEventListener("pointerout", () => hover(null));
    views.set(name, view);
  }

  // Figures of many rows are drawn one by one, so that the page answers before the last one is there.
  async function drawFrom(names) {
    const together = rows.length > MANY_ROWS ? 1 : names.length;
    const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
    if (together === 1) await painted().then(() => reached("ready"));
    for (let begin = 0; begin < names.length; begin += together) {
      const now = names.slice(begin, begin + together);
      if (together === 1) await painted();
      now.forEach(draw);
      await Promise.all(now.map((name) => feed(views.get(name), name)));
    }
    if (together > 1) reached("ready");
    reached("drawn");
  }

  // Tells when: as an attribute, and on the page's clock.
  function reached(point) {
    document.documentElement.dataset[point] = "yes";
    performance.mark(point);
  }

  const refuse = () => Promise.reject(new Error("the page makes no request"));

  function tell(event, item) {
    const tip = document.getElementById("tip");
    const row = item && item.datum && rows[item.datum.row];
    tip.hidden = !row;
    if (!row) return;
    tip.replaceChildren(...row.lines.map((line) => Object.assign(document.createElement("div"), { textContent: line })));
    const left = Math.min(event.pageX + 14, window.scrollX + document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${event.pageY + 14}px`;
  }

  function hover(item) {
    const row = item && item.datum && rows[item.datum.row];
    show(row ? row.series : null);
  }

  function show(series) {
    if (state.hovered === series) return;
    state.hovered = series;
    mark();
  }

  const pickedNow = () => (state.hovered === null ? [...state.picked] : [state.hovered]);

  function mark() {
    const now = new Set(pickedNow());
    views.forEach((view, name) => { if (name !== "ranked") view.signal("picked", [...now]).runAsync(); });
    rows.forEach((row) => lines.get(row.row).classList.toggle("picked", now.has(row.series)));
    document.querySelectorAll("#legend button").forEach((button) => {
      button.setAttribute("aria-pressed", state.picked.has(button.textContent));
    });
  }

  function drawLegend() {
    const legend = document.getElementById("legend");
    if (!legend) return;
    const series = new Map(state.order.map((row) => [row.series, row]));
    legend.hidden = series.size > MOST_LEGEND || !series.size;
    if (legend.hidden) return legend.replaceChildren();
    legend.replaceChildren(...[...series.values()].map(legendButton));
    mark();
  }

  function legendButton(row) {
    const button = document.createElement("button");
    button.type = "button";
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "-1.3 -1.3 2.6 2.6");
    svg.setAttribute("aria-hidden", "true");
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", row.shape);
    path.setAttribute("fill", row.colour);
    svg.append(path);
    button.append(svg, row.series);
    button.addEventListener("click", () => {
      if (!state.picked.delete(row.series)) state.picked.add(row.series);
      mark();
    });
    button.addEventListener("pointerenter", () => show(row.series));
    button.addEventListener("pointerleave", () => show(null));
    return button;
  }

  // Start ------------------------------------------------------------------------------------------------

  const tip = Object.assign(document.createElement("div"), { id: "tip", hidden: true });
  tip.setAttribute("aria-hidden", "true");
  document.body.append(tip);
  addSorting();
  addFilters();
  update();
  drawFrom(Object.keys(charts));
})();
