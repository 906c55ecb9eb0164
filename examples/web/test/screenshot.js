// A picture of the page after a story: node screenshot.js FILE [MODEL [PROMPT]], with FAIRY2I_SITE as .ci/web sets it.
import { isolatedServer, startBrowser } from "./site.js";

const [file, model = "exact", prompt = "Once upon a time"] = process.argv.slice(2);
const [browser, server] = await Promise.all([startBrowser(), isolatedServer()]);
try {
  const visit = await browser.open(`${server.url}?model=${model}`);
  await visit.ask(prompt, 120);
  await visit.page.screenshot({ path: file });
} finally {
  await browser.close();
  await server.close();
}
process.exit(0);
