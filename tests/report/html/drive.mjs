// Opens a page in a real browser, uses it by keyboard, and prints what it found as JSON.
//
//   node drive.mjs NODE_MODULES CHROME PAGE FOLDER [open]
//
// FOLDER receives screenshots and page.pdf; with "open" the page is opened and looked at only.
import { createRequire } from "node:module";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [modules, chrome, file, folder, only] = process.argv.slice(2);
const require = createRequire(join(modules, "none.js"));
const puppeteer = require("puppeteer-core");
const axe = readFileSync(join(modules, "axe-core", "axe.min.js"), "utf8");

const browser = await puppeteer.launch({
  executablePath: chrome, headless: "shell", args: ["--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"],
});
const page = await browser.newPage();
await page.setViewport({ width: 1280, height: 900 });
const found = { messages: [], requests: [], dialogs: 0 };
page.on("console", (message) => { if (message.type() !== "log") found.messages.push(`${message.type()}: ${message.text()}`); });
page.on("pageerror", (error) => found.messages.push(`error: ${error.message}`));
page.on("dialog", (dialog) => { found.dialogs += 1; dialog.dismiss(); });
const address = pathToFileURL(file).href;
page.on("request", (request) => {
  const url = request.url();
  if (url !== address && !url.startsWith("data:")) found.requests.push(url.slice(0, 200));
});

await page.goto(address);
await page.waitForSelector("html[data-drawn=yes]", { timeout: 60000 }).catch((error) => found.messages.push(`error: ${error.message}`));
// Seconds from the start of the navigation, by the page's own clock.
const at = await page.evaluate(() => Object.fromEntries(["ready", "drawn"].map((point) =>
  [point, (performance.getEntriesByName(point)[0]?.startTime ?? Infinity) / 1000])));
Object.assign(found, { seconds: at.ready, drawn: at.drawn });
console.error(`answers after ${at.ready} s, drawn after ${at.drawn} s`);

const look = () => page.evaluate(() => ({
  rows: [...document.querySelectorAll("#rows tbody tr:not([hidden])")].map((line) => line.dataset.row),
  count: document.getElementById("count").textContent,
  sorted: [...document.querySelectorAll("#rows thead th")].map((head) => head.getAttribute("aria-sort")),
  heads: [...document.querySelectorAll("#rows thead th")].map((head) => head.textContent),
  legend: [...document.querySelectorAll("#legend button")].map((button) => button.textContent),
  figures: [...document.querySelectorAll("figure")].map((figure) => ({
    name: figure.dataset.chart,
    marks: figure.querySelectorAll(".chart svg .mark-symbol path, .chart svg .mark-rect path").length,
    alternative: figure.querySelector(".chart svg")?.getAttribute("aria-label") || figure.querySelector("[role=graphics-document]")?.getAttribute("aria-label"),
    says: figure.querySelector(".says").textContent,
    texts: [...figure.querySelectorAll(".chart svg text")].map((text) => text.textContent),
  })),
}));
const picture = (name) => page.screenshot({ path: join(folder, name), fullPage: true });
const settle = () => page.evaluate(() => new Promise((done) => setTimeout(done, 250)));

// A person with a keyboard alone: Tab until the wanted element has the focus.
async function tabTo(selector, most = 400) {
  await page.evaluate(() => document.activeElement.blur());
  for (let presses = 1; presses <= most; presses += 1) {
    await page.keyboard.press("Tab");
    if (await page.evaluate((wanted) => document.activeElement.matches(wanted), selector)) return true;
  }
  return false;
}

// Sections are laid out as they come into view; pictures and axe look at all of them.
if (found.messages.length === 0) await page.evaluate(() => {
  if (document.querySelectorAll("#rows tbody tr").length > 100) return;
  document.querySelectorAll("section").forEach((section) => { section.style.contentVisibility = "visible"; });
});

if (only === "open") {
  found.first = await look();
  await page.screenshot({ path: join(folder, "wide.png"), fullPage: found.first.rows.length < 100 });
  await browser.close();
  console.log(JSON.stringify(found));
  process.exit(0);
}

found.sections = await page.$$eval("main h2", (heads) => heads.map((head) => head.textContent));
found.first = await look();
await picture("wide.png");

const column = found.first.heads.findIndex((head) => head.includes("latency"));
if (column >= 0) {
  const button = `#rows thead th:nth-child(${column + 1}) button`;
  found.reachedSorting = await tabTo(button);
  await page.keyboard.press("Enter");
  await settle();
  found.rising = await look();
  await page.keyboard.press("Space");
  await settle();
  found.falling = await look();
  await picture("sorted.png");
  await page.keyboard.press("Enter");
  await settle();
  found.unsorted = await look();
}

found.reachedWords = await tabTo("#words");
await page.keyboard.type("swin");
await settle();
found.filtered = await look();
await picture("filtered.png");
found.reachedReset = await tabTo("#all-rows");
await page.keyboard.press("Enter");
await settle();
found.reset = await look();

if (await page.$("select[data-filter]")) {
  found.reachedChoice = await tabTo("select[data-filter]");
  await page.keyboard.press("ArrowDown");
  await settle();
  found.chosen = { ...(await look()), value: await page.$eval("select[data-filter]", (choice) => choice.value) };
  await tabTo("#all-rows");
  await page.keyboard.press("Enter");
  await settle();
}

if (await page.$("#legend button")) {
  found.reachedLegend = await tabTo("#legend button");
  await page.keyboard.press("Enter");
  await settle();
  found.pale = await page.$$eval(".chart svg .mark-symbol path", (marks) =>
    marks.filter((mark) => Number(mark.getAttribute("opacity")) < 0.5).length);
  await page.keyboard.press("Enter");
  await settle();
}

await page.evaluate(axe);
found.violations = await page.evaluate(async () => (await window.axe.run(document)).violations.map(
  ({ id, impact, nodes }) => ({ id, impact, nodes: nodes.slice(0, 3).map((node) => node.html.slice(0, 200)) })));

await page.setViewport({ width: 390, height: 844 });
await settle();
found.narrowOverflow = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
await picture("narrow.png");

await page.setViewport({ width: 1280, height: 900 });
await page.emulateMediaType("print");
found.printed = await page.$$eval("main h2", (heads) => heads.filter((head) => head.offsetHeight > 0).map((head) => head.textContent));
writeFileSync(join(folder, "page.pdf"), await page.pdf({ format: "A4", preferCSSPageSize: true, outline: true }));
found.owned = await page.evaluate(() => window.owned ?? null);
found.ready = await page.evaluate(() => document.documentElement.dataset.ready ?? null);
await browser.close();

// The same page without scripts: static figures, and the whole table.
const plain = await puppeteer.launch({ executablePath: chrome, headless: "shell", args: ["--no-sandbox", "--disable-gpu"] });
const quiet = await plain.newPage();
await quiet.setJavaScriptEnabled(false);
await quiet.setViewport({ width: 1280, height: 900 });
await quiet.goto(address);
found.images = (await quiet.$$("figure img")).length;
await quiet.screenshot({ path: join(folder, "without-scripts.png"), fullPage: true });
await plain.close();
console.log(JSON.stringify(found));
