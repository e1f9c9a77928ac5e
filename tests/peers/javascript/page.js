// A browser before the status page: does what a person does there, and says line by line what it sees.
// Its one argument is JSON: { "url", "chromium", "shots": folder or null }. The gateway's cloud is to go away once it has
// said "values change".
"use strict";

const { chromium } = require("playwright-core");

const PATIENCE = { timeout: 60000 };
const OPTIONS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];
const say = (what, more = {}) => console.log(JSON.stringify({ what, ...more }));

/** The text of a place in the page. */
const text = (page, selector) => page.$eval(selector, (place) => place.textContent);

async function look({ url, chromium: executablePath, shots }) {
  const browser = await chromium.launch({ executablePath, args: OPTIONS });
  const context = await browser.newContext({ viewport: { width: 1000, height: 1200 }, colorScheme: "light" });
  const page = await context.newPage();
  const faults = [];
  page.on("console", (message) => message.type() === "error" && faults.push(message.text()));
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("request", (request) => request.url().startsWith(url) || faults.push(`asked for ${request.url()}`));

  await page.goto(url);
  await page.waitForFunction(() => document.getElementById("verdict").textContent === "All is well.", null, PATIENCE);
  say("all is well", { title: await page.title() });

  // By the keyboard alone to the first device, and into it.
  for (let step = 0; step < 20; step += 1) {
    await page.keyboard.press("Tab");
    if (await page.evaluate(() => document.activeElement.matches("#devices summary"))) break;
  }
  await page.keyboard.press("Enter");
  const value = "#devices details[open] tbody tr td:nth-child(2)";
  await page.waitForSelector(value, PATIENCE);
  const before = await text(page, value);
  await page.waitForFunction(([place, was]) => document.querySelector(place).textContent !== was, [value, before], PATIENCE);
  await page.waitForFunction(() => document.querySelector("#clients td"), null, PATIENCE);
  const clients = await page.$$eval("#clients td:first-child", (cells) => cells.map((cell) => cell.textContent));
  const markup = await page.$$eval("main img, main script, main iframe, main b", (found) => found.length);
  if (shots) await page.screenshot({ path: `${shots}/status-page.png`, fullPage: true });
  say("values change", { before, after: await text(page, value), clients, markup });

  await page.waitForFunction(() => document.getElementById("verdict").textContent.startsWith("Not connected: cloud"), null, PATIENCE);
  say("an outage shows", { verdict: await text(page, "#verdict"), state: await text(page, "#uplinks td:nth-child(2)") });

  // What a screen reader needs.
  const reading = await page.evaluate(() => ({
    language: document.documentElement.lang,
    live: document.getElementById("verdict").getAttribute("role"),
    headings: [...document.querySelectorAll("h1, h2")].length,
    unnamed: [...document.querySelectorAll("th:not([scope]), section:not([aria-labelledby]), svg:not([aria-label]), meter:not([id])")].length,
  }));
  say("read aloud", reading);

  await page.setViewportSize({ width: 360, height: 800 });
  await page.emulateMedia({ colorScheme: "dark" });
  const narrow = await page.evaluate(() => ({
    width: document.documentElement.scrollWidth,
    ground: getComputedStyle(document.body).backgroundColor,
  }));
  if (shots) await page.screenshot({ path: `${shots}/status-page-phone.png`, fullPage: true });
  say("a phone at night", narrow);
  say("faults", { faults });
  await browser.close();
}

look(JSON.parse(process.argv[2])).catch((error) => {
  console.error(error);
  process.exit(1);
});
