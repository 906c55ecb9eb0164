// Decoding speed of models beside the page, in turns: FAIRY2I_SITE=SITE node compare.js ROUNDS TOKENS QUERY QUERY ...
// A query is what follows "?" in the page's address: "model=dense16&threads=1". Ratios are to the first one, of medians.
import { arch, cpus } from "node:os";
import { isolatedServer, startBrowser } from "./site.js";

const [rounds, tokens, ...queries] = process.argv.slice(2);
const found = Object.fromEntries(queries.map((query) => [query, []]));
const server = await isolatedServer();
for (let round = 0; round < Number(rounds); round++)
  for (const query of queries) {
    const browser = await startBrowser(); // a new one each time, so that no model finds the memory of another
    try {
      const visit = await browser.open(`${server.url}?${query}`);
      const { line } = await visit.ask("Once upon a time", Number(tokens));
      const memory = await visit.page.evaluate(() => performance.measureUserAgentSpecificMemory());
      found[query].push({
        speed: Number(line.match(/([\d.]+) tokens\/s/)[1]),
        memory: memory.bytes,
        status: await visit.text("status"),
      });
    } finally {
      await browser.close();
    }
  }
await server.close();

const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];
const speeds = Object.fromEntries(queries.map((query) => [query, median(found[query].map(({ speed }) => speed))]));
console.log(`${cpus()[0].model}, ${cpus().length} processors, ${arch()}; ${rounds} rounds of ${tokens} tokens`);
for (const query of queries) {
  const memory = Math.round(median(found[query].map((each) => each.memory)) / 1e6);
  const ratio = (speeds[query] / speeds[queries[0]]).toFixed(3);
  console.log(`${query}: ${ratio} of the first one's tokens/s, memory ${memory} MB; ${found[query][0].status}`);
}
process.exit(0);
