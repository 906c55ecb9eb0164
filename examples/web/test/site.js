// The built page with models beside it (.ci/web makes that folder), a server for it, and a browser.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { preview } from "vite";

export const SITE = process.env.FAIRY2I_SITE ?? assert.fail("FAIRY2I_SITE names no folder: run .ci/web, which makes one");
/** What Python does with each model, by its name: see reference.py. */
export const expected = JSON.parse(readFileSync(join(SITE, "reference.json"), "utf8"));

const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]; // prettier-ignore

/** `npm run serve` on the site: with the headers that allow threads. */
export async function isolatedServer() {
  const port = await freePort();
  const root = fileURLToPath(new URL("..", import.meta.url));
  const server = await preview({ root, logLevel: "error", build: { outDir: SITE }, preview: { host: "127.0.0.1", port } });
  return { url: `http://127.0.0.1:${port}/`, close: () => server.close() };
}

/** A server that knows nothing of this page and sends no such headers. */
export async function plainServer() {
  const port = await freePort();
  const server = spawn("python3", ["-m", "http.server", "--bind", "127.0.0.1", "--directory", SITE, `${port}`], {
    stdio: "ignore",
  });
  const url = `http://127.0.0.1:${port}/`;
  for (let tries = 0; tries < 100; tries++) {
    if (
      await fetch(url).then(
        () => true,
        () => false,
      )
    )
      return { url, close: () => server.kill() };
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error("python3 -m http.server did not start");
}

/** A browser with an empty profile of its own. */
export async function startBrowser(...more) {
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  const browser = await chromium.launch({ executablePath, args: [...FLAGS, ...more] });
  return { open: (url) => Visit.open(browser, url), close: () => browser.close() };
}

/** The page, opened once; `requests` are the addresses that it and its workers asked for. */
export class Visit {
  requests = [];

  static async open(browser, url) {
    const visit = new Visit();
    const context = await browser.newContext({ viewport: { width: 800, height: 600 } });
    context.on("request", (request) => visit.requests.push(request.url()));
    visit.page = await context.newPage();
    await visit.page.goto(url);
    await visit.page.waitForFunction(
      () => !document.querySelector("#start").disabled || !document.querySelector("#error").hidden,
      null,
      {
        timeout: 300_000,
      },
    );
    return visit;
  }

  text(id) {
    return this.page.textContent(`#${id}`);
  }

  /** The line of the error, null if none is shown. */
  async error() {
    return (await this.page.isVisible("#error")) ? this.text("error") : null;
  }

  /** Start a generation and do not wait for it. */
  async begin(prompt, limit = 200, temperature = 0) {
    await this.page.fill("#prompt", prompt);
    await this.page.fill("#limit", `${limit}`);
    await this.page.fill("#temperature", `${temperature}`);
    await this.page.click("#start");
  }

  /** Wait for the end of a generation: its token ids, its text, and the line below it. */
  async end() {
    await this.page.waitForFunction(() => !document.querySelector("#start").disabled, null, { timeout: 600_000 });
    const given = await this.page.locator("#log p:last-child .given").allTextContents();
    const text = (await this.page.textContent("#log p:last-child")).slice(given.join("").length);
    const tokens = (await this.text("tokens")).split(" ").filter(Boolean).map(Number);
    return { text, tokens, line: await this.text("speed") };
  }

  async ask(...given) {
    await this.begin(...given);
    return this.end();
  }

  close() {
    return this.page.context().close();
  }
}

function freePort() {
  return new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}
